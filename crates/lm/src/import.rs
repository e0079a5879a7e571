//! Models from elsewhere, GGUF files and Hugging Face directories, as model directories of this program's own layout.
//!
//! That layout is the Hugging Face one with `saddle.json` beside it, so that what is written here is also what other
//! programs load: export is the same as import.

use crate::card::ModelKind;
use crate::config::CONFIG_FILE;
use crate::finite::first_not_finite;
use crate::gguf::GgufFile;
use crate::layout::{policy_shapes, score_shapes};
use crate::peft::merge_adapter;
use crate::score_checkpoint::ScoreCheckpoint;
use crate::tokenizer::TOKENIZER_FILE;
use crate::weights::tensor_bytes;
use crate::{DecoderConfig, LmError, ModelCard, ModelDirectory, Tokenizer};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// A model that was read whole, ready to be written.
#[derive(Debug)]
pub struct Import {
    /// Its shape.
    pub config: DecoderConfig,
    /// Its weights by their published names, on the CPU, in the number type they were stored in (float32 from GGUF).
    pub weights: BTreeMap<String, Tensor>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// What it is for.
    pub card: ModelCard,
}

impl Import {
    /// Reads the model at `source`: a `.gguf` file or a directory in the Hugging Face layout. `kind` says what it is for,
    /// which must not contradict what the model itself says, and must be given where that says nothing of its scores.
    ///
    /// # Errors
    /// Whatever is wrong with the model, with its file, the key or tensor, and the remedy.
    pub fn read(source: &Path, kind: Option<ModelKind>) -> Result<Self, LmError> {
        if source.is_dir() {
            return Self::from_directory(source, kind);
        }
        if source.is_file() && source.extension() == Some(OsStr::new("gguf")) {
            return Self::from_gguf(source, kind);
        }
        Err(LmError::Model {
            path: source.to_owned(),
            message: "is neither a .gguf file nor a directory in the Hugging Face layout; give the path of one".into(),
        })
    }

    /// Merges the adapters in the directory `path`, in PEFT's layout, into the weights. The range of scores is no longer known
    /// then: it was that of the model without them.
    ///
    /// # Errors
    /// [`LmError::Model`] or [`LmError::StoredTensor`] if they are not adapters of this model, or of a kind that is not
    /// computed here.
    pub fn merge_adapter(&mut self, path: &Path) -> Result<(), LmError> {
        self.card.score_range = None;
        merge_adapter(path, &self.config, &mut self.weights)
    }

    /// Writes the model to the directory `path` with its weights as `kind`, or as they are.
    ///
    /// # Errors
    /// [`LmError::StoredTensor`] if a weight has no finite number of that kind, before anything is written; as
    /// [`ModelDirectory::write`].
    pub fn write(&self, path: &Path, kind: Option<Kind>) -> Result<ModelDirectory, LmError> {
        let convert = |(name, weight): (&String, &Tensor)| {
            let weight = kind.map_or(Ok(weight.shallow_clone()), |kind| weight.f_to_kind(kind))?;
            match first_not_finite(&tensor_bytes(&weight)?, weight.f_kind()?) {
                None => Ok((name.clone(), weight)),
                Some(place) => Err(LmError::StoredTensor {
                    path: path.to_owned(),
                    tensor: name.clone(),
                    message: format!(
                        "its number {place} is not finite in the type asked for, so the model was not written; choose bf16 or f32"
                    ),
                }),
            }
        };
        let weights = self.weights.iter().map(convert).collect::<Result<Vec<_>, LmError>>()?;
        ModelDirectory::write(path, &self.config, &weights, &self.tokenizer, &self.card)
    }

    fn from_gguf(path: &Path, kind: Option<ModelKind>) -> Result<Self, LmError> {
        let file = GgufFile::open(path)?;
        let kind = agreed_kind(path, kind, Some(ModelKind::Policy))?;
        let config = file.config()?;
        let tokenizer = file.tokenizer()?;
        let card = ModelCard::new(kind, tokenizer.fingerprint(), None);
        Ok(Self { weights: file.weights(&config)?, config, tokenizer, card })
    }

    fn from_directory(path: &Path, kind: Option<ModelKind>) -> Result<Self, LmError> {
        let directory = ModelDirectory::open(path)?;
        let config = directory.config()?;
        if !path.join(TOKENIZER_FILE).is_file() {
            return Err(no_tokenizer(path));
        }
        let tokenizer = directory.tokenizer()?;
        let stored = directory.stored_weights()?;
        let (kind, normalizer, score_range) = match (directory.card()?, ScoreCheckpoint::read(&path.join(CONFIG_FILE))?)
        {
            (Some(card), _) => (agreed_kind(path, kind, Some(card.kind))?, card.normalizer, card.score_range),
            (None, Some(scores)) => {
                let kind = agreed_kind(path, kind, scores.kind()?)?;
                (kind, scores.normalizer(kind, &stored)?, None)
            }
            (None, None) => (agreed_kind(path, kind, Some(ModelKind::Policy))?, None, None),
        };
        let shapes = match kind {
            ModelKind::Policy => policy_shapes(&config),
            ModelKind::Reward | ModelKind::Cost => score_shapes(&config, 1),
        };
        let weights = directory.read_weights(&stored, &shapes, Device::Cpu)?;
        let card = ModelCard::new(kind, tokenizer.fingerprint(), normalizer).with_score_range(score_range);
        Ok(Self { config, weights, tokenizer, card })
    }
}

/// What a model is for, from what was `asked` and what the model itself says.
fn agreed_kind(path: &Path, asked: Option<ModelKind>, own: Option<ModelKind>) -> Result<ModelKind, LmError> {
    let refuse = |message: String| Err(LmError::Model { path: path.to_owned(), message: message.to_lowercase() });
    match (asked, own) {
        (Some(asked), Some(own)) if asked != own => {
            refuse(format!("is a {own:?} model, not a {asked:?} model; leave its kind out"))
        }
        (Some(ModelKind::Policy), None) => refuse("is a score model, not a policy; say reward or cost".into()),
        (_, Some(kind)) | (Some(kind), None) => Ok(kind),
        (None, None) => refuse(
            "gives scores, but does not say of what; say which kind it is: reward (more is more helpful) or cost (above 0 is unsafe)".into(),
        ),
    }
}

fn no_tokenizer(path: &Path) -> LmError {
    LmError::Model {
        path: path.to_owned(),
        message: format!(
            "holds no {TOKENIZER_FILE}; make one: python -c \"from transformers import AutoTokenizer; \
             AutoTokenizer.from_pretrained('{0}').save_pretrained('{0}')\"",
            path.display()
        ),
    }
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
