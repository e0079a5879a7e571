//! Text to token ids and back: a Hugging Face `tokenizer.json` with the special tokens and chat template of its
//! `tokenizer_config.json`. Rendering and encoding of conversations is in [`crate::chat`].
//!
//! Padding and truncation that a `tokenizer.json` asks for are switched off: rows are padded where batches are made, and
//! a text that is too long is its caller's decision.

use crate::LmError;
use crate::files::{parse_json, read_text, write_text};
use crate::template::ChatTemplate;
use crate::tokenizer_file;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The tokenizer proper in a model directory.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Special tokens and chat template in a model directory.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// Where older model directories name special tokens that `tokenizer_config.json` does not.
pub(crate) const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";
/// Where newer model directories keep the chat template.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";

const TOKENIZER_LIMIT_BYTES: u64 = 128 << 20;
const TOKENIZER_CONFIG_LIMIT_BYTES: u64 = 8 << 20;
const CHAT_TEMPLATE_LIMIT_BYTES: u64 = 1 << 20;

/// The special tokens that are read, by their keys.
const SPECIAL_KEYS: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

/// A tokenizer with its special tokens and chat template. Immutable, and shared between threads by reference.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The same, but the text of a special token is text: what a person or model wrote cannot end or begin a turn.
    literal: tokenizers::Tokenizer,
    /// `tokenizer_config.json` as it was read, so that saving keeps what is not understood here.
    settings: Map<String, Value>,
    special: BTreeMap<&'static str, SpecialToken>,
    /// The texts of special tokens that are declared, and are not in the vocabulary.
    missing: BTreeMap<&'static str, String>,
    pub(crate) template: ChatTemplate,
    pub(crate) origin: String,
    vocab_size: usize,
    fingerprint: String,
}

#[derive(Debug)]
struct SpecialToken {
    text: String,
    id: i64,
}

impl Tokenizer {
    /// Loads `tokenizer.json`, `tokenizer_config.json` and, where there are any, `chat_template.jinja` and
    /// `special_tokens_map.json`.
    ///
    /// # Errors
    /// [`LmError::File`], [`LmError::Json`], [`LmError::Tokenizer`] or [`LmError::Template`], each naming the file.
    pub fn load(directory: &Path) -> Result<Self, LmError> {
        let path = directory.join(TOKENIZER_FILE);
        let text = read_text(&path, TOKENIZER_LIMIT_BYTES)?;
        tokenizer_file::check(&text).map_err(|message| refuse(&path.display().to_string(), message))?;
        let inner =
            tokenizers::Tokenizer::from_bytes(&text).map_err(|error| refuse(&path.display().to_string(), error))?;
        let path = directory.join(TOKENIZER_CONFIG_FILE);
        let mut settings: Map<String, Value> = parse_json(&read_text(&path, TOKENIZER_CONFIG_LIMIT_BYTES)?, &path)?;
        add_special_tokens(&mut settings, &directory.join(SPECIAL_TOKENS_FILE))?;
        let origin = path.display().to_string();
        let template = directory.join(CHAT_TEMPLATE_FILE);
        let template = if template.is_file() {
            ChatTemplate::compile(read_text(&template, CHAT_TEMPLATE_LIMIT_BYTES)?, &template.display().to_string())?
        } else if let Some(source) = template_in(&settings).map_err(|message| refuse(&origin, message))? {
            ChatTemplate::compile(source.to_owned(), &origin)?
        } else {
            ChatTemplate::built_in()?
        };
        Self::new(inner, settings, template, origin)
    }

    pub(crate) fn new(
        mut inner: tokenizers::Tokenizer,
        settings: Map<String, Value>,
        template: ChatTemplate,
        origin: String,
    ) -> Result<Self, LmError> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| refuse(&origin, error))?;
        let (mut special, mut missing) = (BTreeMap::new(), BTreeMap::new());
        for key in SPECIAL_KEYS {
            let Some(text) = special_text(&settings, key).map_err(|message| refuse(&origin, message))? else {
                continue;
            };
            if let Some(id) = inner.token_to_id(text) {
                special.insert(key, SpecialToken { text: text.to_owned(), id: i64::from(id) });
                continue;
            }
            if template.source().contains(key) {
                return Err(refuse(&origin, format!("{}, and the chat template needs it", absent(key, text))));
            }
            missing.insert(key, text.to_owned());
        }
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let serialised = inner.to_string(false).map_err(|error| refuse(&origin, error))?;
        let fingerprint = format!("{:x}", Sha256::digest(serialised));
        let mut literal = inner.clone();
        literal.set_encode_special_tokens(true);
        Ok(Self { inner, literal, settings, special, missing, template, origin, vocab_size, fingerprint })
    }

    /// What somebody who uses this tokenizer should know: that the chat template is not its own, and which special tokens it
    /// declares and does not have.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let template = self.template.is_built_in().then(|| {
            format!("{}: no chat template; conversations are written in the format of Safe RLHF", self.origin)
        });
        let missing =
            self.missing.iter().map(|(key, text)| format!("{}: {}; left out", self.origin, absent(key, text)));
        template.into_iter().chain(missing).collect()
    }

    /// Takes over the ids of special tokens that `tokenizer_config.json` does not name, as published models of older
    /// tokenizer classes leave them out, or that it names and the vocabulary lacks. Ids without a token are passed over.
    pub(crate) fn complete(&mut self, ids: [(&'static str, Option<i64>); 3]) {
        for (key, id) in ids {
            let text = id.and_then(|id| u32::try_from(id).ok()).and_then(|id| self.inner.id_to_token(id));
            if let (Some(id), Some(text)) = (id, text)
                && !self.special.contains_key(key)
            {
                self.missing.remove(key);
                self.settings.insert(key.into(), json!(text));
                self.special.insert(key, SpecialToken { text, id });
            }
        }
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json`, the chat template within the latter, into `directory`, which
    /// must exist.
    ///
    /// # Errors
    /// [`LmError::File`] if that fails.
    pub fn save(&self, directory: &Path) -> Result<(), LmError> {
        let text = self.inner.to_string(true).map_err(|error| refuse(&self.origin, error))?;
        write_text(&directory.join(TOKENIZER_FILE), &text)?;
        let mut settings = self.settings.clone();
        settings.insert("chat_template".into(), json!(self.template.source()));
        write_text(&directory.join(TOKENIZER_CONFIG_FILE), &format!("{:#}\n", Value::Object(settings)))?;
        // A file left by an earlier tokenizer would be preferred to the template just written.
        let stale = directory.join(CHAT_TEMPLATE_FILE);
        if stale.is_file() {
            fs::remove_file(&stale).map_err(LmError::file("remove", &stale))?;
        }
        Ok(())
    }

    /// The token ids of `text`, in which the texts of special tokens are recognised. `add_special` adds what the
    /// tokenizer puts around every text, usually the token that begins it.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`] if the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<i64>, LmError> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(|error| refuse(&self.origin, error))?;
        Ok(widen(encoding.get_ids()))
    }

    /// As [`Self::encode`] for many texts at once, on several threads.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_batch(&self, texts: &[&str], add_special: bool) -> Result<Vec<Vec<i64>>, LmError> {
        let encodings =
            self.inner.encode_batch_fast(texts.to_vec(), add_special).map_err(|error| refuse(&self.origin, error))?;
        Ok(encodings.iter().map(|encoding| widen(encoding.get_ids())).collect())
    }

    /// The token ids of `text` taken literally: a `<eos>` in it is five characters. Nothing is added.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_literal(&self, text: &str) -> Result<Vec<i64>, LmError> {
        let encoding = self.literal.encode_fast(text, false).map_err(|error| refuse(&self.origin, error))?;
        Ok(widen(encoding.get_ids()))
    }

    /// The text of `tokens`; bytes that are not UTF-8 become U+FFFD. `skip_special` leaves special tokens out. A model may have
    /// more rows than there are tokens, and sample one: it has no text.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`] for a number that is no id of any vocabulary.
    pub fn decode(&self, tokens: &[i64], skip_special: bool) -> Result<String, LmError> {
        let narrow = |&token: &i64| {
            u32::try_from(token)
                .map_err(|_| refuse(&self.origin, format!("{token} is no token id: it is not in 0..2³²")))
        };
        let ids = tokens.iter().map(narrow).collect::<Result<Vec<u32>, _>>()?;
        self.inner.decode(&ids, skip_special).map_err(|error| refuse(&self.origin, error))
    }

    /// One more than the largest token id, added tokens included. A model may have more rows than that, never fewer.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The token that begins a text.
    #[must_use]
    pub fn bos(&self) -> Option<i64> {
        self.special.get("bos_token").map(|token| token.id)
    }

    /// The token that ends a text.
    #[must_use]
    pub fn eos(&self) -> Option<i64> {
        self.special.get("eos_token").map(|token| token.id)
    }

    /// The token that ends a text, for a use that needs it.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`] if there is none, or the one that is declared is not in the vocabulary.
    pub fn required_eos(&self) -> Result<i64, LmError> {
        let message = match self.missing.get("eos_token") {
            Some(text) => absent("eos_token", text),
            None => "has no eos_token, so an answer cannot be ended; set one".to_owned(),
        };
        self.eos().ok_or_else(|| refuse(&self.origin, message))
    }

    /// The token that fills short rows.
    #[must_use]
    pub fn pad(&self) -> Option<i64> {
        self.special.get("pad_token").map(|token| token.id)
    }

    /// SHA-256, in hexadecimal, of the tokenizer's canonical `tokenizer.json`. Two models with the same fingerprint share
    /// their token ids, so that one can score the other's tokens directly.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The special tokens' texts under the names that chat templates know them by.
    pub(crate) fn special_texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.special.iter().map(|(key, token)| (*key, token.text.as_str()))
    }
}

fn refuse(origin: &str, message: impl ToString) -> LmError {
    LmError::Tokenizer { origin: origin.to_owned(), message: message.to_string() }
}

/// That a declared token is not there.
fn absent(key: &str, text: &str) -> String {
    format!("{key} {text:?} is not in the vocabulary of {TOKENIZER_FILE}")
}

/// Adds the special tokens of the file `path`, if there is one, that `settings` does not name.
fn add_special_tokens(settings: &mut Map<String, Value>, path: &Path) -> Result<(), LmError> {
    if !path.is_file() {
        return Ok(());
    }
    let mut named: Map<String, Value> = parse_json(&read_text(path, TOKENIZER_CONFIG_LIMIT_BYTES)?, path)?;
    for key in SPECIAL_KEYS {
        if let (Some(value), None | Some(Value::Null)) = (named.remove(key), settings.get(key)) {
            settings.insert(key.into(), value);
        }
    }
    Ok(())
}

fn widen(ids: &[u32]) -> Vec<i64> {
    ids.iter().copied().map(i64::from).collect()
}

/// A special token is stored as its text, or as an object that holds it as `content`.
fn special_text<'a>(settings: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match settings.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(value) => match value.get("content").and_then(Value::as_str) {
            Some(text) => Ok(Some(text)),
            None => Err(format!("{key} must be a string, or an object with a string as content, is {value}")),
        },
    }
}

/// A chat template is stored as its text, or as several by name.
fn template_in(settings: &Map<String, Value>) -> Result<Option<&str>, String> {
    let default = match settings.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(source)) => return Ok(Some(source)),
        Some(Value::Array(named)) => named.iter().find(|each| each["name"] == "default").map(|each| &each["template"]),
        Some(Value::Object(named)) => named.get("default"),
        Some(_) => None,
    };
    match default.and_then(Value::as_str) {
        Some(source) => Ok(Some(source)),
        None => Err("chat_template must be a text, or several by name of which one is called \"default\"".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train_bpe;

    fn trained() -> Tokenizer {
        train_bpe(["the quick brown fox", "the lazy dog", "the the the quick"].iter(), 300).unwrap()
    }

    fn saved() -> (tempfile::TempDir, Tokenizer) {
        let directory = tempfile::tempdir().unwrap();
        let tokenizer = trained();
        tokenizer.save(directory.path()).unwrap();
        (directory, tokenizer)
    }

    /// The saved tokenizer after `change` was made to its `tokenizer_config.json`.
    fn loaded_with(change: impl FnOnce(&mut Value)) -> Result<Tokenizer, LmError> {
        let (directory, _) = saved();
        let path = directory.path().join(TOKENIZER_CONFIG_FILE);
        let mut settings: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut settings);
        fs::write(&path, settings.to_string()).unwrap();
        Tokenizer::load(directory.path())
    }

    #[test]
    fn a_saved_tokenizer_loads_as_the_same_one() {
        let (directory, original) = saved();
        let loaded = Tokenizer::load(directory.path()).unwrap();
        assert_eq!(loaded.fingerprint(), original.fingerprint());
        assert_eq!((loaded.bos(), loaded.eos(), loaded.pad()), (original.bos(), original.eos(), original.pad()));
        assert_eq!(loaded.template.source(), original.template.source());
        let text = "the quick dog, naïve 🦊";
        assert_eq!(loaded.encode(text, true).unwrap(), original.encode(text, true).unwrap());
    }

    #[test]
    fn the_fingerprint_does_not_depend_on_the_layout_of_the_file_but_on_its_vocabulary() {
        let (directory, original) = saved();
        let path = directory.path().join(TOKENIZER_FILE);
        let value: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        fs::write(&path, value.to_string()).unwrap();
        assert_eq!(Tokenizer::load(directory.path()).unwrap().fingerprint(), original.fingerprint());
        let other = train_bpe(["another vocabulary altogether, altogether"].iter(), 300).unwrap();
        assert_ne!(other.fingerprint(), original.fingerprint());
    }

    #[test]
    fn special_tokens_are_read_as_text_or_as_objects() {
        let tokenizer = loaded_with(|settings| {
            settings["bos_token"] = json!({"__type": "AddedToken", "content": "<eos>", "lstrip": false});
            settings["pad_token"] = Value::Null;
        })
        .unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.pad()), (tokenizer.eos(), None));
    }

    #[test]
    fn a_special_token_outside_the_vocabulary_refuses_only_what_needs_it() {
        let error = loaded_with(|settings| settings["eos_token"] = json!("<|im_end|>")).unwrap_err().to_string();
        for part in [TOKENIZER_CONFIG_FILE, "eos_token \"<|im_end|>\"", "the chat template needs it"] {
            assert!(error.contains(part), "{error}");
        }
        let tokenizer = loaded_with(|settings| {
            settings["eos_token"] = json!("<|im_end|>");
            settings["pad_token"] = json!("[NEW]");
            settings["chat_template"] = json!("{{ messages[0].content }}");
        })
        .unwrap();
        assert_eq!((tokenizer.eos(), tokenizer.pad()), (None, None));
        let error = tokenizer.encode_response("a").unwrap_err().to_string();
        assert!(error.contains("eos_token \"<|im_end|>\" is not in the vocabulary"), "{error}");
        let notices = tokenizer.notices();
        assert!(notices.len() == 2 && notices[1].contains("pad_token \"[NEW]\""), "{notices:?}");
        let mut completed = tokenizer;
        completed.complete([("bos_token", None), ("eos_token", Some(2)), ("pad_token", None)]);
        assert_eq!((completed.required_eos().unwrap(), completed.notices().len()), (2, 1));
        let error = loaded_with(|settings| settings["eos_token"] = json!(3)).unwrap_err().to_string();
        assert!(error.contains("eos_token must be a string"), "{error}");
    }

    #[test]
    fn the_default_of_several_named_templates_is_taken_and_a_built_in_one_is_said() {
        for (named, expected) in [
            (json!([{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]), Some("b")),
            (json!({"default": "b", "tools": "a"}), Some("b")),
            (json!([{"name": "tools", "template": "a"}]), None),
            (json!(3), None),
        ] {
            match (loaded_with(|settings| settings["chat_template"] = named.clone()), expected) {
                (Ok(tokenizer), Some(source)) => {
                    assert_eq!((tokenizer.template.source(), tokenizer.notices()), (source, vec![]), "{named}");
                }
                (Err(error), None) => assert!(error.to_string().contains("called \"default\""), "{named}: {error}"),
                (other, _) => panic!("{named}: {other:?}"),
            }
        }
        let notices = loaded_with(|settings| settings["chat_template"] = Value::Null).unwrap().notices();
        assert!(notices.len() == 1 && notices[0].contains("no chat template"), "{notices:?}");
    }

    #[test]
    fn special_tokens_that_the_settings_do_not_name_are_those_of_the_map() {
        let (directory, _) = saved();
        let path = directory.path().join(TOKENIZER_CONFIG_FILE);
        let mut settings: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        settings["eos_token"] = Value::Null;
        fs::write(&path, settings.to_string()).unwrap();
        let map = json!({"eos_token": {"content": "<eos>"}, "pad_token": "<unk>"});
        fs::write(directory.path().join(SPECIAL_TOKENS_FILE), map.to_string()).unwrap();
        let tokenizer = Tokenizer::load(directory.path()).unwrap();
        assert_eq!((tokenizer.eos(), tokenizer.pad()), (Some(2), Some(0)));
    }

    #[test]
    fn a_template_file_is_preferred_and_does_not_outlive_a_save() {
        let (directory, _) = saved();
        fs::write(directory.path().join(CHAT_TEMPLATE_FILE), "from the file").unwrap();
        let tokenizer = Tokenizer::load(directory.path()).unwrap();
        assert_eq!(tokenizer.template.source(), "from the file");
        tokenizer.save(directory.path()).unwrap();
        assert_eq!(Tokenizer::load(directory.path()).unwrap().template.source(), "from the file");
        assert!(!directory.path().join(CHAT_TEMPLATE_FILE).is_file());
    }

    #[test]
    fn settings_that_are_not_understood_survive_a_save() {
        let tokenizer = loaded_with(|settings| settings["model_max_length"] = json!(2048)).unwrap();
        let directory = tempfile::tempdir().unwrap();
        tokenizer.save(directory.path()).unwrap();
        assert!(fs::read_to_string(directory.path().join(TOKENIZER_CONFIG_FILE)).unwrap().contains("2048"));
    }

    #[test]
    fn padding_and_truncation_that_a_file_asks_for_are_switched_off() {
        let (directory, _) = saved();
        let path = directory.path().join(TOKENIZER_FILE);
        let mut value: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        value["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        fs::write(&path, value.to_string()).unwrap();
        let tokenizer = Tokenizer::load(directory.path()).unwrap();
        assert_eq!(tokenizer.decode(&tokenizer.encode("the lazy dog", false).unwrap(), true).unwrap(), "the lazy dog");
    }

    #[test]
    fn a_batch_is_encoded_as_its_texts_one_by_one() {
        let tokenizer = trained();
        let texts = ["the fox", "", "the lazy <eos> dog"];
        let one_by_one: Vec<_> = texts.iter().map(|text| tokenizer.encode(text, true).unwrap()).collect();
        assert_eq!(tokenizer.encode_batch(&texts, true).unwrap(), one_by_one);
    }

    #[test]
    fn an_id_that_no_token_has_is_without_text_and_a_number_that_is_no_id_an_error_that_names_it() {
        let tokenizer = trained();
        let beyond = tokenizer.vocab_size() as i64;
        let fox = tokenizer.encode("the fox", false).unwrap();
        let padded = [&fox[..1], &[beyond, beyond + 100], &fox[1..]].concat();
        assert_eq!(tokenizer.decode(&padded, false).unwrap(), "the fox");
        for token in [-1, i64::MAX] {
            assert!(tokenizer.decode(&[token], false).unwrap_err().to_string().contains(&token.to_string()));
        }
    }

    #[test]
    fn missing_and_damaged_files_are_named() {
        let (directory, _) = saved();
        let load = || Tokenizer::load(directory.path()).unwrap_err().to_string();
        fs::write(directory.path().join(TOKENIZER_CONFIG_FILE), "[1]").unwrap();
        assert!(load().contains(TOKENIZER_CONFIG_FILE));
        fs::remove_file(directory.path().join(TOKENIZER_CONFIG_FILE)).unwrap();
        assert!(load().contains(TOKENIZER_CONFIG_FILE));
        fs::write(directory.path().join(TOKENIZER_FILE), "{\"model\": 3}").unwrap();
        assert!(load().contains(TOKENIZER_FILE));
        fs::write(directory.path().join(TOKENIZER_FILE), [b'"', 0xff, b'"']).unwrap();
        assert!(load().contains("UTF-8"));
    }
}
