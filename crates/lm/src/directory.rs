//! A model as a Hugging Face directory: `config.json`, `model.safetensors` (or its shards), the tokenizer's files, and
//! `saddle.json` for what those have no place for.
//!
//! Reading checks that the files belong together: tensors against the shapes of the configuration, the tokenizer against
//! the embedding and against the fingerprint in `saddle.json`. Writing replaces file by file, each complete, the weights
//! last: a new directory without weights was never finished.
//!
//! Three files may name tokens that end an answer: `config.json`, `generation_config.json` and `tokenizer_config.json`. All
//! that any of them names do, here and in what is written.

use crate::card::{CARD_FILE, ModelCard};
use crate::config::{CONFIG_FILE, OneOrMany};
use crate::files::{parse_json, read_text, write_text};
use crate::layout::{LANGUAGE_MODEL_HEAD, SCORE_HEAD};
use crate::memory::require_for_weights;
use crate::stored::{NORMALIZER_PREFIX, StoredWeights, WEIGHTS_FILE};
use crate::tokenizer::SPECIAL_TOKENS_FILE;
use crate::{DecoderConfig, LmError, Tokenizer, write_safetensors};
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Where a model says what ends an answer when it is not in `config.json`.
pub(crate) const GENERATION_CONFIG_FILE: &str = "generation_config.json";
const GENERATION_CONFIG_LIMIT_BYTES: u64 = 1 << 20;
/// What an earlier model may have left in a directory, and what would be read beside the new one's files.
const STALE_FILES: [&str; 2] = [GENERATION_CONFIG_FILE, SPECIAL_TOKENS_FILE];
/// Heads that a directory may hold beside the trunk. One that is not asked for is left out: a tied language-model head
/// that was stored all the same, or the policy's when a score model starts from its trunk.
const HEADS: [&str; 2] = [LANGUAGE_MODEL_HEAD, SCORE_HEAD];
/// Rotary tables and causal masks, which old checkpoints store and which follow from the configuration.
const DERIVED_SUFFIXES: [&str; 3] = [".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];
/// How many names an error lists.
const NAMES_SHOWN: usize = 5;

/// A model directory that exists and has a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelDirectory {
    path: PathBuf,
}

impl ModelDirectory {
    /// Finds the model directory at `path`.
    ///
    /// # Errors
    /// [`LmError::Model`] if it is not a directory, or holds no `config.json`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, LmError> {
        let directory = Self { path: path.into() };
        let refuse = |message: String| LmError::Model { path: directory.path.clone(), message };
        if !directory.path.is_dir() {
            return Err(refuse("no such directory; give the path of a model in the Hugging Face layout".into()));
        }
        if !directory.file(CONFIG_FILE).is_file() {
            return Err(refuse(format!("holds no {CONFIG_FILE}, so it is not a model in the Hugging Face layout")));
        }
        Ok(directory)
    }

    /// Writes a model to the directory `path`, which is made if need be, in the layout that `transformers` loads.
    ///
    /// # Errors
    /// [`LmError::File`] if it cannot be written, [`LmError::Model`] if the tokenizer does not fit the configuration or
    /// the card is inconsistent.
    pub fn write(
        path: impl Into<PathBuf>,
        config: &DecoderConfig,
        weights: &[(String, Tensor)],
        tokenizer: &Tokenizer,
        card: &ModelCard,
    ) -> Result<Self, LmError> {
        let directory = Self { path: path.into() };
        directory.expect_tokenizer(config, tokenizer, Some(card))?;
        let config = &config.with_end_tokens(tokenizer.eos());
        fs::create_dir_all(&directory.path).map_err(LmError::file("create", &directory.path))?;
        for stale in STALE_FILES.map(|name| directory.file(name)).iter().filter(|path| path.is_file()) {
            fs::remove_file(stale).map_err(LmError::file("remove", stale))?;
        }
        card.write(&directory.file(CARD_FILE))?;
        write_text(&directory.file(CONFIG_FILE), &format!("{:#}\n", config_json(config, weights, card)))?;
        tokenizer.save(&directory.path)?;
        // transformers refuses weights that do not say which framework's names they follow.
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        write_safetensors(&directory.file(WEIGHTS_FILE), weights, &metadata)?;
        Ok(directory)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's shape, with the tokens that `generation_config.json` adds to those that end an answer. A head that is
    /// stored beside an embedding that it is said to be tied to, and is another, is the model's own, as `transformers` has it.
    ///
    /// # Errors
    /// As [`DecoderConfig::read`], for both files; [`LmError::File`] and [`LmError::Model`] if the weights cannot be read.
    pub fn config(&self) -> Result<DecoderConfig, LmError> {
        let mut config = self.stated_config()?;
        if config.tie_word_embeddings && StoredWeights::are_in(&self.path) {
            let stored = StoredWeights::open(&self.path, config.architecture)?;
            config.tie_word_embeddings = !stored.has_own_head(config.architecture.embedding_name())?;
        }
        Ok(config)
    }

    /// The same by the two configuration files alone, without a look at the weights.
    fn stated_config(&self) -> Result<DecoderConfig, LmError> {
        let config = DecoderConfig::read(&self.file(CONFIG_FILE))?;
        let known = |id: &i64| usize::try_from(*id).is_ok_and(|id| id < config.vocab_size);
        let named: Vec<i64> = self.generation_end_tokens()?.into_iter().filter(known).collect();
        Ok(config.with_end_tokens(named))
    }

    /// What `generation_config.json`, if there is one, names as the end of an answer.
    fn generation_end_tokens(&self) -> Result<Vec<i64>, LmError> {
        #[derive(Deserialize)]
        struct GenerationConfig {
            eos_token_id: Option<OneOrMany>,
        }
        let path = self.file(GENERATION_CONFIG_FILE);
        if !path.is_file() {
            return Ok(Vec::new());
        }
        let file: GenerationConfig = parse_json(&read_text(&path, GENERATION_CONFIG_LIMIT_BYTES)?, &path)?;
        Ok(file.eos_token_id.map(Vec::from).unwrap_or_default())
    }

    /// What `saddle.json` says of the model; none if it was made by another program.
    ///
    /// # Errors
    /// As [`ModelCard::read`].
    pub fn card(&self) -> Result<Option<ModelCard>, LmError> {
        let path = self.file(CARD_FILE);
        path.is_file().then(|| ModelCard::read(&path)).transpose()
    }

    /// The model's tokenizer. Special tokens that it does not name are those of the model's configuration.
    ///
    /// # Errors
    /// As [`Tokenizer::load`]; [`LmError::Model`] if it has more tokens than the model has rows for, or is not the one
    /// that the model was trained with.
    pub fn tokenizer(&self) -> Result<Tokenizer, LmError> {
        let mut tokenizer = Tokenizer::load(&self.path)?;
        let config = self.stated_config()?;
        self.expect_tokenizer(&config, &tokenizer, self.card()?.as_ref())?;
        tokenizer.complete([
            ("bos_token", config.bos_token_id),
            ("eos_token", config.eos_token_ids.first().copied()),
            ("pad_token", config.pad_token_id),
        ]);
        Ok(tokenizer)
    }

    /// The tensors that `shapes` names, in the number type they are stored in. Heads that `shapes` does not name, and
    /// what follows from the configuration, are left out; any other tensor is an error, since a model that has it
    /// computes something else. All of that is known before the first tensor is read.
    ///
    /// # Errors
    /// As [`read_safetensors`](crate::read_safetensors); [`LmError::StoredTensor`] for a wrong shape, [`LmError::Model`]
    /// for missing and for unexpected tensors.
    pub fn weights(&self, shapes: &[(String, Vec<i64>)], device: Device) -> Result<BTreeMap<String, Tensor>, LmError> {
        self.read_weights(&self.stored_weights()?, shapes, device)
    }

    /// The headers of the weights.
    pub(crate) fn stored_weights(&self) -> Result<StoredWeights, LmError> {
        StoredWeights::open(&self.path, self.stated_config()?.architecture)
    }

    /// As [`Self::weights`], from headers that were read before.
    pub(crate) fn read_weights(
        &self,
        stored: &StoredWeights,
        shapes: &[(String, Vec<i64>)],
        device: Device,
    ) -> Result<BTreeMap<String, Tensor>, LmError> {
        let mut missing = Vec::new();
        for (name, shape) in shapes {
            match stored.find(name) {
                Some((file, found)) => expect_shape(name, &found, shape, file)?,
                None => missing.push(name.as_str()),
            }
        }
        let wanted: BTreeSet<&str> = shapes.iter().map(|(name, _)| name.as_str()).collect();
        let extra: Vec<&str> = stored.names().filter(|name| !wanted.contains(name) && !may_be_left_out(name)).collect();
        for (names, trouble) in [(missing, "lacks"), (extra, "holds, beyond what its configuration asks for,")] {
            if !names.is_empty() {
                return Err(LmError::Model {
                    path: stored.path().to_owned(),
                    message: format!("{trouble} {}; check that {CONFIG_FILE} belongs to these weights", listed(&names)),
                });
            }
        }
        require_for_weights(stored.size_bytes(shapes.iter().map(|(name, _)| name.as_str())), stored.path())?;
        shapes.iter().map(|(name, _)| Ok((name.clone(), stored.read(name, device)?))).collect()
    }

    fn expect_tokenizer(
        &self,
        config: &DecoderConfig,
        tokenizer: &Tokenizer,
        card: Option<&ModelCard>,
    ) -> Result<(), LmError> {
        let refuse = |message| Err(LmError::Model { path: self.path.clone(), message });
        let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
        if tokens > rows {
            return refuse(format!(
                "the tokenizer has {tokens} tokens but the model has rows for {rows}: they do not belong together"
            ));
        }
        match card {
            Some(card) if card.tokenizer_fingerprint != tokenizer.fingerprint() => refuse(format!(
                "the tokenizer's fingerprint is {} but {CARD_FILE} says {}: put back the tokenizer that the model was trained with",
                tokenizer.fingerprint(),
                card.tokenizer_fingerprint
            )),
            _ => Ok(()),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// The `config.json` of a model to be written. Numbers narrower than float32 are named there: `transformers` would widen
/// them otherwise.
fn config_json(config: &DecoderConfig, weights: &[(String, Tensor)], card: &ModelCard) -> serde_json::Value {
    let mut file = config.to_json(card.kind.head());
    match weights.first().map(|(_, tensor)| tensor.kind()) {
        Some(Kind::BFloat16) => file["torch_dtype"] = json!("bfloat16"),
        Some(Kind::Half) => file["torch_dtype"] = json!("float16"),
        _ => {}
    }
    file
}

fn may_be_left_out(name: &str) -> bool {
    HEADS.contains(&name)
        || name.starts_with(NORMALIZER_PREFIX)
        || DERIVED_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// Checks that the tensor `name`, stored in `file`, has `shape`.
fn expect_shape(name: &str, found: &[i64], shape: &[i64], file: &Path) -> Result<(), LmError> {
    if found == shape {
        return Ok(());
    }
    Err(LmError::StoredTensor {
        path: file.to_owned(),
        tensor: name.to_owned(),
        message: format!(
            "has shape {found:?}, the configuration asks for {shape:?}; check that {CONFIG_FILE} belongs to these weights"
        ),
    })
}

/// `3 tensors: a, b, c`, cut off after a few names.
fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(NAMES_SHOWN).copied().collect::<Vec<_>>().join(", ");
    let more = if names.len() > NAMES_SHOWN { ", …" } else { "" };
    let noun = if names.len() == 1 { "tensor" } else { "tensors" };
    format!("{} {noun}: {shown}{more}", names.len())
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
