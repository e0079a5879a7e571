//! Training of a byte-level BPE tokenizer (Sennrich et al., arXiv 1508.07909; bytes as in GPT-2) on texts of one's own,
//! for models that start from nothing.
//!
//! Every text can be encoded and comes back unchanged, since all 256 bytes are in the vocabulary. The result is a function
//! of the texts, whatever their order of arrival in threads or hash maps.

use crate::template::{ChatTemplate, ROLE_TEMPLATE};
use crate::{LmError, Tokenizer};
use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

const PAD: &str = "<pad>";
const BOS: &str = "<bos>";
const EOS: &str = "<eos>";
const UNKNOWN: &str = "<unk>";
const ROLES: [&str; 3] = ["<|user|>", "<|assistant|>", "<|system|>"];
/// The special tokens, in the order of their ids from 0.
const SPECIAL: [&str; 7] = [PAD, BOS, EOS, UNKNOWN, ROLES[0], ROLES[1], ROLES[2]];
/// All bytes and all special tokens.
const SMALLEST_VOCABULARY: usize = 256 + SPECIAL.len();
const LARGEST_VOCABULARY: usize = 1 << 20;

type Trainable = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Trains a byte-level BPE tokenizer of at most `vocab_size` tokens on plain `texts`. Its ids 0 to 6 are `<pad>`, `<bos>`,
/// `<eos>`, `<unk>`, `<|user|>`, `<|assistant|>` and `<|system|>`, and its chat template puts a role token before each
/// message and `<eos>` after each answer. `<bos>` begins a text that is encoded with special tokens.
///
/// # Errors
/// [`LmError::Tokenizer`] if `vocab_size` is not between 263, which holds the bytes and the special tokens, and 2²⁰.
pub fn train_bpe<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    vocab_size: usize,
) -> Result<Tokenizer, LmError> {
    let origin = "trained tokenizer";
    let refuse = |message: String| LmError::Tokenizer { origin: origin.to_owned(), message };
    if !(SMALLEST_VOCABULARY..=LARGEST_VOCABULARY).contains(&vocab_size) {
        return Err(refuse(format!(
            "a byte-level vocabulary must have {SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY} tokens, not {vocab_size}"
        )));
    }
    let bytes = ByteLevel::new(false, true, true);
    let begin = TemplateProcessing::builder()
        .try_single(format!("{BOS} $A"))
        .and_then(|builder| builder.try_pair(format!("{BOS} $A $B")))
        .map_err(&refuse)?
        .special_tokens(vec![(BOS, 1)])
        .build()
        .map_err(|error| refuse(error.to_string()))?;
    let mut tokenizer = Trainable::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes)).with_post_processor(Some(begin));
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(2)
        .special_tokens(SPECIAL.iter().map(|token| AddedToken::from(*token, true)).collect())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut trainer, texts).map_err(|error| refuse(error.to_string()))?;
    let template = ChatTemplate::compile(ROLE_TEMPLATE.to_owned(), "built-in")?;
    Tokenizer::new(tokenizer.into(), settings(), template, origin.to_owned())
}

/// The `tokenizer_config.json` of a trained tokenizer.
fn settings() -> Map<String, Value> {
    let settings = [
        ("tokenizer_class", json!("PreTrainedTokenizerFast")),
        ("bos_token", json!(BOS)),
        ("eos_token", json!(EOS)),
        ("pad_token", json!(PAD)),
        ("unk_token", json!(UNKNOWN)),
        ("additional_special_tokens", json!(ROLES)),
        ("clean_up_tokenization_spaces", json!(false)),
    ];
    settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| train_bpe(TEXTS.iter(), 300).unwrap());

    proptest! {
        #[test]
        fn literal_text_comes_back_unchanged_even_with_special_tokens_in_it(parts in prop::collection::vec(
            prop_oneof![any::<String>(), prop::sample::select(&SPECIAL[..]).prop_map(str::to_owned)], 0..6)) {
            let text = parts.concat();
            let tokens = TOKENIZER.encode_literal(&text).unwrap();
            prop_assert!(tokens.iter().all(|&token| token >= SPECIAL.len() as i64));
            prop_assert_eq!(TOKENIZER.decode(&tokens, true).unwrap(), text);
        }
    }

    const TEXTS: [&str; 4] =
        ["how do I bake bread?", "bake the bread slowly", "mix flour, water and salt", "how do I mix paint?"];

    #[test]
    fn any_unicode_text_comes_back_unchanged() {
        let tokenizer = train_bpe(TEXTS.iter(), 300).unwrap();
        for text in [
            "how do I bake bread?",
            "  leading,  double and trailing spaces  ",
            "naïve café — “quoted”",
            "漢字かな交じり文 한국어 العربية עברית",
            "🦊👩‍👩‍👧 e\u{301} \u{200b}\u{feff}",
            "tabs\tand\r\nlines\n\n",
            "\0\u{7f}\u{10ffff}",
            "",
        ] {
            let tokens = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(&tokens, false).unwrap(), text);
            let literal = tokenizer.encode_literal(text).unwrap();
            assert_eq!(literal, tokens);
        }
    }

    #[test]
    fn training_twice_gives_the_same_tokenizer() {
        let fingerprint = || train_bpe(TEXTS.iter(), 320).unwrap().fingerprint().to_owned();
        assert_eq!(fingerprint(), fingerprint());
        let reversed = train_bpe(TEXTS.iter().rev(), 320).unwrap();
        assert_eq!(reversed.fingerprint(), fingerprint());
    }

    #[test]
    fn special_tokens_have_the_first_ids_and_begin_encodes_when_asked_for() {
        let tokenizer = train_bpe(TEXTS.iter(), 300).unwrap();
        assert_eq!((tokenizer.pad(), tokenizer.bos(), tokenizer.eos()), (Some(0), Some(1), Some(2)));
        assert_eq!(tokenizer.encode("<|user|><|assistant|><|system|>", true).unwrap(), [1, 4, 5, 6]);
        assert_eq!(tokenizer.decode(&[1, 4, 5, 2], true).unwrap(), "");
        assert_eq!(tokenizer.decode(&[1, 4, 5, 2], false).unwrap(), "<bos><|user|><|assistant|><eos>");
    }

    #[test]
    fn frequent_words_become_single_tokens_within_the_vocabulary() {
        let tokenizer = train_bpe(TEXTS.iter(), 320).unwrap();
        assert!(tokenizer.vocab_size() <= 320);
        assert_eq!(tokenizer.encode(" bread", false).unwrap().len(), 1);
    }

    #[test]
    fn a_vocabulary_without_room_for_the_bytes_is_refused() {
        assert!(train_bpe(TEXTS.iter(), SMALLEST_VOCABULARY - 1).unwrap_err().to_string().contains("not 262"));
        assert_eq!(train_bpe(TEXTS.iter(), SMALLEST_VOCABULARY).unwrap().vocab_size(), SMALLEST_VOCABULARY);
        assert!(train_bpe(TEXTS.iter(), LARGEST_VOCABULARY + 1).is_err());
    }
}
