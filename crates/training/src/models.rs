//! Models as stages use them: read from a directory, checked to be what the stage needs.

use crate::TrainingError;
use crate::config::{ModelSection, SpecialTokens};
use crate::encode::Sequence;
use crate::scoring::{end_scores, score_rollouts};
use saddle_core::Rollout;
use saddle_lm::{
    DecoderConfig, ModelCard, ModelDirectory, ModelKind, Normalizer, Parameters, Policy, Precision, ScoreModel,
    ScoreRange, Tokenizer, fresh_weights, policy_shapes, score_shapes, train_bpe, trunk_shapes,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

/// A policy with the tokenizer that it speaks through.
#[derive(Debug)]
pub struct PolicyModel {
    /// The weights, frozen.
    pub policy: Policy,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

impl PolicyModel {
    /// Reads the policy at `path`, its weights kept in float32.
    ///
    /// # Errors
    /// As [`ModelDirectory::weights`]; [`TrainingError::Unusable`] if the directory holds a score model.
    pub fn load(path: &Path, device: Device) -> Result<Self, TrainingError> {
        Self::load_kept(path, Precision::F32, device)
    }

    /// As [`Self::load`], its weights kept in the precision `kept`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_kept(path: &Path, kept: Precision, device: Device) -> Result<Self, TrainingError> {
        let directory = ModelDirectory::open(path)?;
        if let Some(card) = directory.card()?
            && card.kind != ModelKind::Policy
        {
            return Err(wrong_kind(path, card.kind, ModelKind::Policy));
        }
        let config = directory.config()?;
        // Not to the device, which would hold it twice for a moment.
        let weights = directory.weights(&policy_shapes(&config), Device::Cpu)?;
        let parameters = Parameters::new(&weights, kept.kind(), device)?;
        Ok(Self { policy: Policy::over(config, parameters)?, tokenizer: directory.tokenizer()? })
    }

    /// Writes the policy, adapters merged, to the directory `path`.
    ///
    /// # Errors
    /// As [`ModelDirectory::write`].
    pub fn save(policy: &Policy, tokenizer: &Tokenizer, path: &Path) -> Result<(), TrainingError> {
        let weights: Vec<(String, Tensor)> = policy.weights()?.into_iter().collect();
        let card = ModelCard::new(ModelKind::Policy, tokenizer.fingerprint(), None);
        ModelDirectory::write(path, policy.config(), &weights, tokenizer, &card)?;
        Ok(())
    }
}

/// A reward or cost model with its tokenizer, its normalizer and the range of its scores.
#[derive(Debug)]
pub struct Scorer {
    /// The weights, frozen.
    pub model: ScoreModel,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// What it scores.
    pub kind: ModelKind,
    /// How raw scores are normalised, if they are.
    pub normalizer: Option<Normalizer>,
    /// Between which scores, so normalised, the responses lie that it was trained on, if that is known.
    pub score_range: Option<ScoreRange>,
}

impl Scorer {
    /// Reads the score model at `path`, its weights kept in float32; `expected` is the kind that the caller needs, if it needs
    /// one.
    ///
    /// # Errors
    /// As [`ModelDirectory::weights`]; [`TrainingError::Unusable`] if it is of another kind.
    pub fn load(path: &Path, expected: Option<ModelKind>, device: Device) -> Result<Self, TrainingError> {
        Self::load_kept(path, expected, Precision::F32, device)
    }

    /// As [`Self::load`], its weights kept in the precision `kept`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_kept(
        path: &Path,
        expected: Option<ModelKind>,
        kept: Precision,
        device: Device,
    ) -> Result<Self, TrainingError> {
        let directory = ModelDirectory::open(path)?;
        let card = directory.card()?.ok_or_else(|| {
            TrainingError::Unusable(format!(
                "{}: holds no saddle.json, so whether it is a reward or a cost model is not known; train it with saddle",
                path.display()
            ))
        })?;
        if card.kind == ModelKind::Policy || expected.is_some_and(|expected| card.kind != expected) {
            return Err(wrong_kind(path, card.kind, expected.unwrap_or(ModelKind::Reward)));
        }
        let config = directory.config()?;
        let weights = directory.weights(&score_shapes(&config, 1), Device::Cpu)?;
        let model = ScoreModel::over(config, Parameters::new(&weights, kept.kind(), device)?)?;
        Ok(Self {
            model,
            tokenizer: directory.tokenizer()?,
            kind: card.kind,
            normalizer: card.normalizer,
            score_range: card.score_range,
        })
    }

    /// Writes the score model, adapters merged, to the directory `path`.
    ///
    /// # Errors
    /// As [`ModelDirectory::write`].
    pub fn save(&self, path: &Path) -> Result<(), TrainingError> {
        let weights: Vec<(String, Tensor)> = self.model.weights()?.into_iter().collect();
        let card =
            ModelCard::new(self.kind, self.tokenizer.fingerprint(), self.normalizer).with_score_range(self.score_range);
        ModelDirectory::write(path, self.model.config(), &weights, &self.tokenizer, &card)?;
        Ok(())
    }

    /// Refuses a scorer whose token ids are not those of `policy`'s tokenizer.
    ///
    /// # Errors
    /// [`TrainingError::Unusable`] with the remedy.
    pub fn require_tokenizer_of(&self, policy: &Tokenizer, role: &str) -> Result<(), TrainingError> {
        if self.tokenizer.fingerprint() == policy.fingerprint() {
            return Ok(());
        }
        Err(TrainingError::Unusable(format!(
            "the {role} has another tokenizer than the policy; train it with `model.tokenizer.path` or `model.from` naming the policy's directory"
        )))
    }

    /// Scores of `rollouts`, normalised, at most `budget_tokens` tokens at a time.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn score(&self, rollouts: &[Rollout], budget_tokens: usize) -> Result<Vec<f32>, TrainingError> {
        Ok(self.normalise(score_rollouts(&self.model, rollouts, budget_tokens)?))
    }

    /// Scores of `sequences`, normalised.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn score_sequences(&self, sequences: &[Sequence], budget_tokens: usize) -> Result<Vec<f32>, TrainingError> {
        Ok(self.normalise(end_scores(&self.model, &sequences.iter().collect::<Vec<_>>(), budget_tokens)?))
    }

    fn normalise(&self, scores: Vec<f32>) -> Vec<f32> {
        normalised(scores, self.normalizer)
    }
}

/// Raw scores in the units of `normalizer`.
#[must_use]
pub fn normalised(mut scores: Vec<f32>, normalizer: Option<Normalizer>) -> Vec<f32> {
    if let Some(Normalizer { mean, std }) = normalizer {
        scores.iter_mut().for_each(|score| *score = ((f64::from(*score) - mean) / std) as f32);
    }
    scores
}

/// Where a stage's model begins: a configuration, weights, and a tokenizer.
#[derive(Debug)]
pub struct Start {
    score_model_at: Option<PathBuf>,
    config: DecoderConfig,
    weights: BTreeMap<String, Tensor>,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
}

impl Start {
    /// Reads or draws the model of `section`. `texts` gives the stage's training texts, for a tokenizer that is to be
    /// trained on them.
    ///
    /// # Errors
    /// If the model or tokenizer cannot be read, or the shape is impossible.
    pub fn new(
        section: &ModelSection,
        texts: impl FnOnce() -> Vec<String>,
        seed: u64,
        device: Device,
    ) -> Result<Self, TrainingError> {
        if let Some(path) = &section.from {
            let directory = ModelDirectory::open(path)?;
            let config = directory.config()?;
            let scores = directory.card()?.is_some_and(|card| card.kind != ModelKind::Policy);
            let shapes = if scores { trunk_shapes(&config) } else { policy_shapes(&config) };
            let weights = directory.weights(&shapes, device)?;
            let score_model_at = scores.then(|| path.clone());
            return Ok(Self { score_model_at, weights, tokenizer: directory.tokenizer()?, config });
        }
        let (Some(shape), Some(tokenizer)) = (&section.shape, &section.tokenizer) else {
            return Err(TrainingError::Unusable("model: neither `from` nor a shape and a tokenizer".into()));
        };
        let tokenizer = match (&tokenizer.path, tokenizer.train_vocabulary) {
            (Some(path), _) => Tokenizer::load(path)?,
            (None, Some(size)) => train_bpe(texts().into_iter(), size)?,
            (None, None) => {
                return Err(TrainingError::Unusable("model.tokenizer: neither `path` nor `train_vocabulary`".into()));
            }
        };
        let special = SpecialTokens { bos: tokenizer.bos(), eos: tokenizer.eos(), pad: tokenizer.pad() };
        let config = shape.decoder(tokenizer.vocab_size(), special);
        let problems = config.validate();
        if !problems.is_empty() {
            return Err(TrainingError::Unusable(format!("model.shape: this decoder cannot be built:\n{problems}")));
        }
        let weights = fresh_weights(&policy_shapes(&config), config.num_hidden_layers, seed)?;
        Ok(Self { score_model_at: None, config, weights, tokenizer })
    }

    /// The model as a policy.
    ///
    /// # Errors
    /// [`TrainingError::Unusable`] if it is a score model, which has no language-model head.
    pub fn policy(&self, device: Device) -> Result<Policy, TrainingError> {
        if let Some(path) = &self.score_model_at {
            return Err(TrainingError::Unusable(format!(
                "{}: is a score model, but a policy is needed here",
                path.display()
            )));
        }
        Ok(Policy::from_weights(self.config.clone(), &self.weights, device)?)
    }

    /// The model's trunk with a fresh scalar head.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn score_model(&self, seed: u64, device: Device) -> Result<ScoreModel, TrainingError> {
        Ok(ScoreModel::on_trunk(self.config.clone(), &self.weights, 1, seed, device)?)
    }

    /// The longest sequence that the model can read, in tokens.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.config.max_position_embeddings
    }
}

fn wrong_kind(path: &Path, found: ModelKind, expected: ModelKind) -> TrainingError {
    TrainingError::Unusable(
        format!("{}: is a {found:?} model, but a {expected:?} model is needed here", path.display()).to_lowercase(),
    )
}
