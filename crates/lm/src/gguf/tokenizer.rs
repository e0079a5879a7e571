//! The tokenizer in a GGUF file, as the `tokenizer.json` that the same tokenizer has in the Hugging Face layout.
//!
//! Two kinds are known: byte-level BPE (`gpt2`), whose merges are in the file and whose way of splitting words is only
//! named there; and SentencePiece BPE (`llama`), whose merges follow from the scores of its pieces.

use super::{GgufFile, Value};
use crate::LmError;
use crate::template::ChatTemplate;
use crate::tokenizer::{TOKENIZER_CONFIG_FILE, Tokenizer};
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";

/// Kinds of tokens, as SentencePiece numbers them.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// The longest SentencePiece token: every way of cutting one in two is tried.
const PIECE_LIMIT_BYTES: usize = 256;

/// How LLaMA 3 splits text into words; `{DIGITS}` stands for how many digits may stay together.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The vocabulary: each token's text and kind, by its id.
struct Vocabulary<'a> {
    texts: Vec<&'a str>,
    kinds: Vec<u64>,
    ids: HashMap<&'a str, usize>,
}

impl GgufFile {
    /// The tokenizer, with its special tokens and chat template.
    ///
    /// # Errors
    /// [`LmError::Model`] for a kind that is not known here or metadata that do not fit together, [`LmError::Tokenizer`]
    /// and [`LmError::Template`] if they are not a working tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer, LmError> {
        let kind: &str = self.required("tokenizer.ggml.model", "a string", Value::as_text)?;
        let vocabulary = self.vocabulary()?;
        let mut file = match kind {
            "gpt2" => self.byte_level(&vocabulary)?,
            "llama" => self.sentence_piece(&vocabulary)?,
            _ => {
                return Err(self.refuse(format!(
                    "has a tokenizer of the kind {kind:?}; gpt2 and llama are read: import the model from its Hugging Face directory instead"
                )));
            }
        };
        file["version"] = json!("1.0");
        file["truncation"] = Json::Null;
        file["padding"] = Json::Null;
        file["added_tokens"] = added_tokens(&vocabulary);
        let origin = self.path.display().to_string();
        let text = file.to_string();
        crate::tokenizer_file::check(&text).map_err(|message| self.refuse(message))?;
        let inner = tokenizers::Tokenizer::from_bytes(text)
            .map_err(|error| self.refuse(format!("its tokenizer does not work: {error}")))?;
        let template = match self.text("tokenizer.chat_template")? {
            Some(source) => ChatTemplate::compile(source.to_owned(), &origin)?,
            None => ChatTemplate::built_in()?,
        };
        Tokenizer::new(inner, self.settings(&vocabulary)?, template, format!("{origin} ({TOKENIZER_CONFIG_FILE})"))
    }

    fn vocabulary(&self) -> Result<Vocabulary<'_>, LmError> {
        let texts = self.texts(TOKENS)?;
        let kinds = self.optional(TOKEN_TYPES, "an array of integers", |value| {
            value.as_array()?.iter().map(Value::as_unsigned).collect::<Option<Vec<u64>>>()
        })?;
        let kinds = kinds.unwrap_or_else(|| vec![NORMAL; texts.len()]);
        if kinds.len() != texts.len() {
            return Err(self.refuse(format!("{TOKENS} has {} values and {TOKEN_TYPES} {}", texts.len(), kinds.len())));
        }
        let mut ids = HashMap::with_capacity(texts.len());
        for (id, text) in texts.iter().enumerate() {
            if let Some(other) = ids.insert(*text, id) {
                return Err(self.refuse(format!("{TOKENS}: tokens {other} and {id} are both {text:?}")));
            }
        }
        Ok(Vocabulary { texts, kinds, ids })
    }

    /// The text of the token that the metadata key `key` names, if there is one.
    fn special<'a>(&self, key: &str, vocabulary: &Vocabulary<'a>) -> Result<Option<&'a str>, LmError> {
        let Some(id) = self.size(key)? else { return Ok(None) };
        match vocabulary.texts.get(id) {
            Some(text) => Ok(Some(text)),
            None => Err(self.refuse(format!("{key} is {id}, beyond the {} tokens", vocabulary.texts.len()))),
        }
    }

    /// The `tokenizer_config.json`.
    fn settings(&self, vocabulary: &Vocabulary<'_>) -> Result<Map<String, Json>, LmError> {
        let mut settings = Map::new();
        for (name, key) in [
            ("bos_token", "tokenizer.ggml.bos_token_id"),
            ("eos_token", "tokenizer.ggml.eos_token_id"),
            ("pad_token", "tokenizer.ggml.padding_token_id"),
            ("unk_token", "tokenizer.ggml.unknown_token_id"),
        ] {
            if let Some(text) = self.special(key, vocabulary)? {
                settings.insert(name.into(), json!(text));
            }
        }
        let family = self.text("general.architecture")?.unwrap_or_default();
        if let Some(length) = self.size(&format!("{family}.context_length"))? {
            settings.insert("model_max_length".into(), json!(length));
        }
        settings.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        settings.insert("clean_up_tokenization_spaces".into(), json!(false));
        Ok(settings)
    }

    /// What stands around every text that is encoded with special tokens.
    fn post_processor(&self, vocabulary: &Vocabulary<'_>, begins: bool) -> Result<Json, LmError> {
        let mut single = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
        let mut pair =
            vec![json!({"Sequence": {"id": "A", "type_id": 0}}), json!({"Sequence": {"id": "B", "type_id": 0}})];
        let mut special = Map::new();
        for (flag, default, key, first) in [
            ("tokenizer.ggml.add_bos_token", begins, "tokenizer.ggml.bos_token_id", true),
            ("tokenizer.ggml.add_eos_token", false, "tokenizer.ggml.eos_token_id", false),
        ] {
            if !self.flag(flag)?.unwrap_or(default) {
                continue;
            }
            let Some(text) = self.special(key, vocabulary)? else { continue };
            let piece = json!({"SpecialToken": {"id": text, "type_id": 0}});
            for pieces in [&mut single, &mut pair] {
                let place = if first { 0 } else { pieces.len() };
                pieces.insert(place, piece.clone());
            }
            special.insert(text.into(), json!({"id": text, "ids": [vocabulary.ids[text]], "tokens": [text]}));
        }
        if special.is_empty() {
            return Ok(Json::Null);
        }
        Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}))
    }

    /// Byte-level BPE, as GPT-2's.
    fn byte_level(&self, vocabulary: &Vocabulary<'_>) -> Result<Json, LmError> {
        let splitting = self.text("tokenizer.ggml.pre")?.unwrap_or("default");
        let add_prefix_space = self.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
        let gpt2 =
            json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": true});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": false, "use_regex": false});
        let words = |digits: &str| {
            let pattern = WORDS.replace("{DIGITS}", digits);
            let split =
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
            json!({"type": "Sequence", "pretokenizers": [split, bytes]})
        };
        let digits = json!({"type": "Digits", "individual_digits": true});
        let (pre_tokenizer, normalizer, whole_words, begins) = match splitting {
            "default" | "gpt-2" => (gpt2, Json::Null, false, false),
            "smollm" => (json!({"type": "Sequence", "pretokenizers": [digits, gpt2]}), Json::Null, false, false),
            "llama-bpe" | "llama3" | "llama-v3" => (words("{1,3}"), Json::Null, true, true),
            "qwen2" | "deepseek-r1-qwen" => (words(""), json!({"type": "NFC"}), false, false),
            _ => {
                return Err(self.refuse(format!(
                    "splits text by the rule {splitting:?}; default, gpt-2, smollm, llama-bpe and qwen2 are known: import the model from its Hugging Face directory instead"
                )));
            }
        };
        let merges = self.texts(MERGES)?.into_iter().map(|merge| {
            // A piece is never empty and has no space inside, but may be one that was made from a space.
            let place = merge.char_indices().skip(1).find(|(_, letter)| *letter == ' ').map(|(place, _)| place);
            let (left, right) = place.map_or((merge, ""), |place| (&merge[..place], &merge[place + 1..]));
            json!([left, right])
        });
        Ok(json!({
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": self.post_processor(vocabulary, begins)?,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words,
                "vocab": ids_by_text(vocabulary), "merges": merges.collect::<Vec<_>>(),
            },
        }))
    }

    /// SentencePiece BPE with bytes for what is not in the vocabulary, as LLaMA's.
    fn sentence_piece(&self, vocabulary: &Vocabulary<'_>) -> Result<Json, LmError> {
        let scores: Vec<f64> = self
            .required(SCORES, "an array of numbers", |value| value.as_array()?.iter().map(Value::as_float).collect())?;
        if scores.len() != vocabulary.texts.len() || scores.iter().any(|score| score.is_nan()) {
            return Err(
                self.refuse(format!("{SCORES} must hold one number for each of the {} tokens", vocabulary.texts.len()))
            );
        }
        if let Some(long) = vocabulary.texts.iter().find(|text| text.len() > PIECE_LIMIT_BYTES) {
            return Err(
                self.refuse(format!("has a token of {} bytes, above the limit of {PIECE_LIMIT_BYTES}", long.len()))
            );
        }
        let unknown = self.special("tokenizer.ggml.unknown_token_id", vocabulary)?;
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let (normalizers, stripped) = match self.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true) {
            true => (json!([{"type": "Prepend", "prepend": "▁"}, spaces]), 1),
            false => (json!([spaces]), 0),
        };
        Ok(json!({
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "post_processor": self.post_processor(vocabulary, true)?,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": stripped, "stop": 0},
            ]},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": ids_by_text(vocabulary), "merges": merges_by_score(vocabulary, &scores),
            },
        }))
    }
}

fn ids_by_text(vocabulary: &Vocabulary<'_>) -> Json {
    Json::Object(vocabulary.texts.iter().enumerate().map(|(id, text)| ((*text).to_owned(), json!(id))).collect())
}

/// Tokens that are found in a text before anything else; special ones have no text of their own.
fn added_tokens(vocabulary: &Vocabulary<'_>) -> Json {
    let tokens = vocabulary.texts.iter().zip(&vocabulary.kinds).enumerate();
    let added = tokens.filter(|(_, (_, kind))| matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED));
    let added = added.map(|(id, (text, kind))| {
        json!({
            "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": *kind != USER_DEFINED,
        })
    });
    added.collect()
}

/// Every way to make a piece from two others, the piece with the highest score first. Control tokens are never made: text
/// that looks like one stays text.
fn merges_by_score(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Json {
    let mut merges: Vec<(f64, &str, &str)> = Vec::new();
    for ((text, kind), score) in vocabulary.texts.iter().zip(&vocabulary.kinds).zip(scores) {
        if *kind != NORMAL {
            continue;
        }
        let start = merges.len();
        for (place, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(place);
            if vocabulary.ids.contains_key(left) && vocabulary.ids.contains_key(right) {
                merges.push((*score, left, right));
            }
        }
        merges[start..].sort_by_key(|(_, left, right)| (vocabulary.ids[left], vocabulary.ids[right]));
    }
    merges.sort_by(|one, other| other.0.total_cmp(&one.0));
    merges.into_iter().map(|(_, left, right)| json!([left, right])).collect()
}
