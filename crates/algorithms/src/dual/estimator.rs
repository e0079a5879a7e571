//! The mean cost of the current policy, from costs as they are scored.

use super::EstimatorConfig;
use super::config::require_not_negative;
use saddle_core::{PolicyVersion, Problems};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// A cost estimate is over its limit when it is so by more than this many of its standard errors.
pub const LIMIT_STANDARD_ERRORS: f64 = 2.0;

/// Samples remembered where the estimator itself sets no number: the bound of its memory.
const REMEMBERED_SAMPLES: usize = 4096;

/// Estimator `fresh`: newly scored costs count more, old ones not at all.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FreshConfig {
    /// Oldest samples that count, in policy versions between their scoring and now. Default 1.
    pub maximum_lag_versions: u64,
    /// Factor on a sample's weight for each version since its scoring, in 0..=1. Default 0.5.
    pub lag_discount: f64,
    /// Effective samples below which there is no estimate. Default 64.
    pub minimum_effective_samples: f64,
}

impl Default for FreshConfig {
    fn default() -> Self {
        Self { maximum_lag_versions: 1, lag_discount: 0.5, minimum_effective_samples: 64.0 }
    }
}

impl FreshConfig {
    pub(super) fn validate(&self) -> Problems {
        let mut problems = Problems::default();
        let discount = self.lag_discount;
        problems.require((0.0..=1.0).contains(&discount), "lag_discount", format!("must be in 0..=1, is {discount}"));
        let minimum = self.minimum_effective_samples;
        let possible = (2.0..=REMEMBERED_SAMPLES as f64).contains(&minimum);
        let message = format!("must be in 2..={REMEMBERED_SAMPLES}, is {minimum}");
        problems.require(possible, "minimum_effective_samples", message);
        problems
    }
}

/// Estimator `upper`: an upper confidence bound on the cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpperConfig {
    /// z, standard errors added to the mean. With 1, a limit is met with room for the noise of batches; 1.645 is a one-sided
    /// 95 %. Default 1.
    pub standard_errors: f64,
    /// The estimate that they are added to.
    pub fresh: FreshConfig,
}

impl Default for UpperConfig {
    fn default() -> Self {
        Self { standard_errors: 1.0, fresh: FreshConfig::default() }
    }
}

impl UpperConfig {
    pub(super) fn validate(&self) -> Problems {
        let mut problems = Problems::default();
        require_not_negative(&mut problems, "standard_errors", self.standard_errors);
        problems.section("fresh", self.fresh.validate());
        problems
    }
}

/// Estimator `window`: the newest costs, whatever their version.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WindowConfig {
    /// Newest samples that count. Default 128.
    pub window_samples: usize,
}

impl Default for WindowConfig {
    fn default() -> Self {
        Self { window_samples: 128 }
    }
}

impl WindowConfig {
    pub(super) fn validate(&self) -> Problems {
        let mut problems = Problems::default();
        let window = self.window_samples;
        problems.require(window >= 1, "window_samples", format!("must be 1 or more, is {window}"));
        problems
    }
}

/// More effective samples than an estimator ever sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unattainable {
    /// The key under `estimator` that asks for them.
    pub key: &'static str,
    /// How many it asks for.
    pub minimum: f64,
    /// How many there are at most.
    pub most: f64,
}

impl EstimatorConfig {
    /// What keeps an estimate from ever being made in a run of `versions` policy versions that bring `samples` costs each.
    /// Those that `fresh` counts weigh d^i at a lag of i: they are worth samples · (Σ d^i)² / Σ d^2i.
    #[must_use]
    pub fn unattainable(&self, samples: usize, versions: u64) -> Option<Unattainable> {
        let fresh = |config: &FreshConfig| {
            let lags = config.maximum_lag_versions.saturating_add(1).min(versions).min(REMEMBERED_SAMPLES as u64);
            let (mut sum, mut squares, mut weight) = (0.0, 0.0, 1.0);
            for _ in 0..lags {
                sum += weight;
                squares += weight * weight;
                weight *= config.lag_discount;
            }
            samples as f64 * sum * sum / squares
        };
        let (key, minimum, most) = match self {
            Self::Fresh(config) => ("minimum_effective_samples", config.minimum_effective_samples, fresh(config)),
            Self::Upper(UpperConfig { fresh: config, .. }) => {
                ("fresh.minimum_effective_samples", config.minimum_effective_samples, fresh(config))
            }
            Self::Window(_) => return None,
        };
        (most < minimum).then_some(Unattainable { key, minimum, most })
    }
}

/// One scored response.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostSample {
    /// C.
    pub cost: f64,
    /// Policy version that was current when it was scored. Not that of its oldest token: by that, long responses look
    /// old and weigh less, and where length goes with harm the estimate is too low (`docs/simulation.md`).
    pub version: PolicyVersion,
}

/// A mean cost with its uncertainty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostEstimate {
    /// Ĵ_C, in cost units.
    pub mean: f64,
    /// Standard error of the mean, in cost units.
    pub standard_error: f64,
    /// How many equally weighted samples it is worth.
    pub effective_samples: f64,
    /// What a controller adds to the mean, in cost units: above 0 with `upper` only.
    pub margin: f64,
}

impl CostEstimate {
    /// Whether every number in it is.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.mean.is_finite() && self.standard_error.is_finite() && self.margin.is_finite()
    }
}

/// Remembers scored costs, boundedly many, and estimates the current policy's mean cost from them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostEstimator {
    config: EstimatorConfig,
    /// Oldest first.
    samples: VecDeque<CostSample>,
    refused: u64,
}

impl CostEstimator {
    /// An estimator that has seen nothing. `config` is valid.
    #[must_use]
    pub fn new(config: &EstimatorConfig) -> Self {
        Self { config: config.clone(), samples: VecDeque::new(), refused: 0 }
    }

    /// Takes a cost in, when it is scored. One that is not finite is counted and left out (DUAL-2).
    pub fn observe(&mut self, sample: CostSample) {
        if !sample.cost.is_finite() {
            self.refused += 1;
            return;
        }
        let capacity = match &self.config {
            EstimatorConfig::Fresh(_) | EstimatorConfig::Upper(_) => REMEMBERED_SAMPLES,
            EstimatorConfig::Window(config) => config.window_samples,
        };
        self.samples.push_back(sample);
        while self.samples.len() > capacity {
            self.samples.pop_front();
        }
    }

    /// Costs that were not finite.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The mean cost of the policy at version `current`; `None` if the samples do not bear one.
    #[must_use]
    pub fn estimate(&self, current: PolicyVersion) -> Option<CostEstimate> {
        match &self.config {
            EstimatorConfig::Fresh(config) => self.fresh(config, current),
            EstimatorConfig::Upper(config) => {
                let estimate = self.fresh(&config.fresh, current)?;
                Some(CostEstimate { margin: config.standard_errors * estimate.standard_error, ..estimate })
            }
            EstimatorConfig::Window(_) => weighted_mean(self.samples.iter().map(|sample| (1.0, sample.cost))),
        }
    }

    /// How many remembered samples an estimate for version `current` is made from: with its effective samples, how evenly
    /// they weigh.
    #[must_use]
    pub fn considered_samples(&self, current: PolicyVersion) -> usize {
        let (EstimatorConfig::Fresh(config) | EstimatorConfig::Upper(UpperConfig { fresh: config, .. })) = &self.config
        else {
            return self.samples.len();
        };
        self.samples.iter().filter(|sample| lag(sample, current) <= config.maximum_lag_versions).count()
    }

    fn fresh(&self, config: &FreshConfig, current: PolicyVersion) -> Option<CostEstimate> {
        let weighted = self.samples.iter().filter_map(|sample| {
            let lag = lag(sample, current);
            let exponent = i32::try_from(lag).unwrap_or(i32::MAX);
            (lag <= config.maximum_lag_versions).then(|| (config.lag_discount.powi(exponent), sample.cost))
        });
        weighted_mean(weighted).filter(|estimate| estimate.effective_samples >= config.minimum_effective_samples)
    }
}

/// Versions between a sample's scoring and now.
fn lag(sample: &CostSample, current: PolicyVersion) -> u64 {
    current.0.saturating_sub(sample.version.0)
}

/// Mean of (weight, cost) pairs, with the standard error of as many equal samples as they are worth. One sample, or none
/// of any weight, has no spread: its standard error is 0.
fn weighted_mean(samples: impl Iterator<Item = (f64, f64)> + Clone) -> Option<CostEstimate> {
    let (weight, square, total) = samples
        .clone()
        .fold((0.0, 0.0, 0.0), |(weight, square, total), (w, cost)| (weight + w, square + w * w, total + w * cost));
    if weight <= 0.0 {
        return None;
    }
    let mean = total / weight;
    let effective_samples = weight * weight / square;
    let spread = samples.map(|(w, cost)| w * (cost - mean).powi(2)).sum::<f64>() / weight;
    let freedom = effective_samples - 1.0;
    let standard_error = if freedom > 0.0 { (spread / freedom).sqrt() } else { 0.0 };
    Some(CostEstimate { mean, standard_error, effective_samples, margin: 0.0 })
}
