//! Score models as other programs publish them: what `config.json` and the weights say of their scores.
//!
//! The Safe RLHF authors' classes (`LlamaForScore`, …) record what is scored (`score_type`) or how it is normalised
//! (`normalize_function`), and keep the running moments of their scores as tensors `normalizer.mean` and `normalizer.var`.
//! A `…ForSequenceClassification` with one label is a score model too, but does not say of what.

use crate::config::CONFIG_LIMIT_BYTES;
use crate::files::{parse_json, read_text};
use crate::stored::{NORMALIZER_PREFIX, StoredWeights};
use crate::{LmError, ModelKind, Normalizer};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// What the authors' normalizer adds to a standard deviation before dividing by it.
const EPSILON: f64 = 1e-8;

/// The part of a `config.json` that is about scores.
#[derive(Debug)]
pub(crate) struct ScoreCheckpoint {
    path: PathBuf,
    settings: Settings,
}

#[derive(Debug, Deserialize)]
struct Settings {
    architectures: Option<Vec<String>>,
    score_dim: Option<usize>,
    score_type: Option<String>,
    normalize_function: Option<String>,
    do_normalize: Option<bool>,
}

impl ScoreCheckpoint {
    /// Reads the `config.json` at `path`; none if it is not that of a score model.
    ///
    /// # Errors
    /// [`LmError::File`] or [`LmError::Json`].
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, LmError> {
        let settings: Settings = parse_json(&read_text(path, CONFIG_LIMIT_BYTES)?, path)?;
        let class = settings.architectures.as_deref().and_then(<[_]>::first);
        let scores =
            class.is_some_and(|class| class.ends_with("ForScore") || class.ends_with("ForSequenceClassification"));
        Ok(scores.then(|| Self { path: path.to_owned(), settings }))
    }

    /// What is scored, if the file says so.
    ///
    /// # Errors
    /// [`LmError::Model`] for a kind of score that is not known here, or several scores a position.
    pub(crate) fn kind(&self) -> Result<Option<ModelKind>, LmError> {
        if let Some(scores) = self.settings.score_dim.filter(|scores| *scores != 1) {
            return Err(self.refuse(format!("score_dim must be 1, is {scores}; use a model with one score")));
        }
        match (self.settings.score_type.as_deref(), self.settings.normalize_function.as_deref()) {
            (Some("reward"), _) | (None, Some("affine")) => Ok(Some(ModelKind::Reward)),
            (Some("cost"), _) | (None, Some("scale")) => Ok(Some(ModelKind::Cost)),
            (None, None | Some("identity" | "translate")) => Ok(None),
            (Some(other), _) => {
                Err(self.refuse(format!("score_type must be \"reward\" or \"cost\", is {other:?}; use such a model")))
            }
            (None, Some(other)) => Err(self.unknown_function(other)),
        }
    }

    /// How a model of `kind` normalises its scores, if it does.
    ///
    /// # Errors
    /// [`LmError::Model`] for a function that is not known or moments that are missing or not one number each.
    pub(crate) fn normalizer(&self, kind: ModelKind, stored: &StoredWeights) -> Result<Option<Normalizer>, LmError> {
        if self.settings.do_normalize != Some(true) {
            return Ok(None);
        }
        let function = self.settings.normalize_function.as_deref();
        let by_kind = if kind == ModelKind::Cost { "scale" } else { "affine" };
        let (shifts, scales) = match function.unwrap_or(by_kind) {
            "affine" => (true, true),
            "scale" => (false, true),
            "translate" => (true, false),
            "identity" => return Ok(None),
            other => return Err(self.unknown_function(other)),
        };
        Ok(Some(Normalizer {
            mean: if shifts { self.moment("mean", stored)? } else { 0.0 },
            std: if scales { self.deviation(stored)? } else { 1.0 },
        }))
    }

    fn deviation(&self, stored: &StoredWeights) -> Result<f64, LmError> {
        let variance = self.moment("var", stored)?;
        if variance > 0.0 {
            return Ok(variance.sqrt() + EPSILON);
        }
        Err(self.refuse(format!(
            "do_normalize is true and {NORMALIZER_PREFIX}var is {variance}: scores cannot be divided by nothing; set do_normalize to false"
        )))
    }

    fn moment(&self, name: &str, stored: &StoredWeights) -> Result<f64, LmError> {
        let name = format!("{NORMALIZER_PREFIX}{name}");
        match stored.find(&name) {
            Some((_, shape)) if shape.iter().product::<i64>() == 1 => {
                Ok(stored.read(&name, Device::Cpu)?.f_to_kind(Kind::Double)?.f_reshape([1])?.f_double_value(&[0])?)
            }
            Some((_, shape)) => Err(self.refuse(format!("{name} must be one number, has shape {shape:?}"))),
            None => Err(self.refuse(format!(
                "do_normalize is true but the weights hold no {name}; fetch them again, or set do_normalize to false"
            ))),
        }
    }

    fn unknown_function(&self, function: &str) -> LmError {
        self.refuse(format!("normalize_function must be affine, scale, translate or identity, is {function:?}"))
    }

    fn refuse(&self, message: String) -> LmError {
        LmError::Model { path: self.path.clone(), message }
    }
}
