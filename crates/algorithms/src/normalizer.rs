//! Running mean and variance of scores, and the normalisation by them.
//!
//! A reward is shifted and scaled. A cost is only scaled: its zero is the boundary between safe and unsafe, and a shift
//! would move it. The moments start at mean 0 and variance 1, so that the first scores pass unchanged.

use crate::Error;
use saddle_core::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Added to the standard deviation before dividing by it.
const EPSILON: f64 = 1e-8;

/// What normalising does to a score x.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NormalizeFunction {
    /// (x − mean) / σ: rewards.
    Affine,
    /// x / σ: costs.
    Scale,
    /// x − mean.
    Translate,
    /// x.
    Identity,
}

/// How batches are merged into the running moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Averaging {
    /// Mean and population variance of all scores ever seen.
    #[default]
    Population,
    /// Exponential moving average, without start-up correction. A batch of one score has no variance and leaves it.
    Exponential {
        /// Share of the old moments that a batch leaves, in 0..=1.
        momentum: f64,
    },
}

impl Averaging {
    /// Everything that is wrong with the values.
    #[must_use]
    pub fn validate(&self) -> Problems {
        let mut problems = Problems::default();
        if let Self::Exponential { momentum } = *self {
            problems.require((0.0..=1.0).contains(&momentum), "momentum", format!("must be in 0..=1, is {momentum}"));
        }
        problems
    }
}

/// Running moments and what is done with them; serialisable whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalizer {
    function: NormalizeFunction,
    averaging: Averaging,
    mean: f64,
    variance: f64,
    count: u64,
}

impl Normalizer {
    /// A normalizer that has seen nothing.
    #[must_use]
    pub fn new(function: NormalizeFunction, averaging: Averaging) -> Self {
        Self { function, averaging, mean: 0.0, variance: 1.0, count: 0 }
    }

    /// A normalizer with known moments, as a score model's checkpoint carries them. Fails for moments that are not
    /// finite or a negative variance.
    pub fn with_moments(function: NormalizeFunction, mean: f64, variance: f64) -> Result<Self, Error> {
        if !mean.is_finite() {
            return Err(Error::Value { what: "the mean", value: mean, needed: "finite" });
        }
        if !(variance.is_finite() && variance >= 0.0) {
            return Err(Error::Value { what: "the variance", value: variance, needed: "finite and 0 or more" });
        }
        Ok(Self { mean, variance, ..Self::new(function, Averaging::default()) })
    }

    /// Merges a batch of scores in. Nothing is changed by an empty batch; a score that is not finite is an error.
    pub fn update(&mut self, scores: &[f64]) -> Result<(), Error> {
        if let Some(&value) = scores.iter().find(|score| !score.is_finite()) {
            return Err(Error::Value { what: "a score", value, needed: "finite" });
        }
        if scores.is_empty() {
            return Ok(());
        }
        let entries = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / entries;
        let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
        match self.averaging {
            Averaging::Population => {
                let seen = self.count as f64;
                let total = seen + entries;
                let shift = mean - self.mean;
                let merged = self.variance * seen + squares + shift * shift * seen * entries / total;
                self.variance = merged / total;
                self.mean += shift * entries / total;
            }
            Averaging::Exponential { momentum } => {
                self.mean = momentum * self.mean + (1.0 - momentum) * mean;
                if scores.len() > 1 {
                    self.variance = momentum * self.variance + (1.0 - momentum) * squares / (entries - 1.0);
                }
            }
        }
        self.count += scores.len() as u64;
        Ok(())
    }

    /// The normalised score.
    #[must_use]
    pub fn normalize(&self, score: f64) -> f64 {
        let scale = self.variance.sqrt() + EPSILON;
        match self.function {
            NormalizeFunction::Affine => (score - self.mean) / scale,
            NormalizeFunction::Scale => score / scale,
            NormalizeFunction::Translate => score - self.mean,
            NormalizeFunction::Identity => score,
        }
    }

    /// Running mean.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Running variance.
    #[must_use]
    pub fn variance(&self) -> f64 {
        self.variance
    }

    /// Scores seen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }
}
