//! Off-policy weights: how far the sampling policy μ was from the learner's π_k, token by token and sequence by
//! sequence. No gradient flows through any of them.

use crate::Error;
use crate::error::{rows, same_length};
use crate::real::{Real, within};
use saddle_core::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bounds of importance weighting.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ImportanceConfig {
    /// Bound of |log π_k − log μ| of a token before anything is made of it, in nats. Default 20.
    pub log_clamp: f64,
    /// Bound of the weight π_k/μ that multiplies the policy loss. Default 2.
    pub weight_cap: f64,
    /// A sequence whose mean k3 divergence, in nats, is above this is rejected. A tight limit leaves out just what the policy is learning:
    /// rare answers that became likely since they were sampled (`docs/limit.md`). Default 0.5.
    pub sequence_k3_limit: f64,
    /// A sequence with a token whose |log-ratio|, in nats, is above this is rejected. Default 5.
    pub token_log_ratio_limit: f64,
    /// λ-V-trace takes a token whose |log-ratio|, in nats, is within this as sampled on-policy: what the same weights
    /// differ by in two kernels. Default 0.01.
    pub noise: f64,
}

impl Default for ImportanceConfig {
    fn default() -> Self {
        Self { log_clamp: 20.0, weight_cap: 2.0, sequence_k3_limit: 0.5, token_log_ratio_limit: 5.0, noise: 0.01 }
    }
}

impl ImportanceConfig {
    /// Everything that is wrong with the values.
    #[must_use]
    pub fn validate(&self) -> Problems {
        let mut problems = Problems::default();
        let clamp = self.log_clamp;
        problems.require(clamp > 0.0 && clamp <= 80.0, "log_clamp", format!("must be in (0, 80], is {clamp}"));
        let cap = self.weight_cap;
        problems.require(cap >= 1.0, "weight_cap", format!("must be 1 or more, is {cap}"));
        for (key, value) in [
            ("sequence_k3_limit", self.sequence_k3_limit),
            ("token_log_ratio_limit", self.token_log_ratio_limit),
            ("noise", self.noise),
        ] {
            problems.require(value >= 0.0, key, format!("must be 0 or more, is {value}"));
        }
        problems
    }
}

/// Weights of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportanceWeights<R> {
    /// lw: clamped log π_k − log μ, `[batch, length]`; 0 where not finite and outside the mask.
    pub log_ratio: Vec<R>,
    /// w = exp(lw), `[batch, length]`; 0 outside the mask.
    pub weights: Vec<R>,
    /// w̄ = min(w, cap), `[batch, length]`; 0 outside the mask.
    pub truncated: Vec<R>,
    /// One for each row.
    pub sequences: Vec<SequenceWeight>,
    /// Generated tokens whose log-ratio was not finite, and counted as 0.
    pub non_finite: usize,
}

/// What the tokens of one sequence say together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequenceWeight {
    /// Generated tokens.
    pub tokens: usize,
    /// Σ lw, the log of the sequence's importance weight.
    pub log_weight: f64,
    /// Mean of `w − 1 − lw`: k3 estimate of KL(μ ‖ π_k), in nats.
    pub k3: f64,
    /// max |lw|.
    pub max_abs_log_ratio: f64,
    /// Whether both are within their limits; a sequence that is not is left out of the policy loss.
    pub keep: bool,
}

impl SequenceWeight {
    /// exp(mean lw).
    #[must_use]
    pub fn geometric_mean(&self) -> f64 {
        (self.log_weight / self.tokens as f64).exp()
    }
}

/// A batch of weights in a few numbers, for metrics and guards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightSummary {
    /// Mean of w over generated tokens; 1 when nothing drifted.
    pub mean_weight: f64,
    /// Largest w.
    pub max_weight: f64,
    /// Share of generated tokens whose weight was cut, in 0..1.
    pub truncated_fraction: f64,
    /// Share of sequences rejected, in 0..1.
    pub rejected_fraction: f64,
    /// Mean over sequences of k3, in nats: the drift μ → π_k.
    pub mean_k3: f64,
    /// Effective sample size of the token weights over the number of tokens, in 0..1.
    pub token_ess_ratio: f64,
    /// Effective sample size of the sequence weights over the number of sequences, in 0..1.
    pub sequence_ess_ratio: f64,
}

/// Weights of a batch: `proximal` is log π_k, `behavior` log μ as recorded at sampling, both `[batch, length]`.
pub fn importance_weights<R: Real>(
    proximal: &[R],
    behavior: &[R],
    mask: &[bool],
    length: usize,
    config: &ImportanceConfig,
) -> Result<ImportanceWeights<R>, Error> {
    let batch = rows(proximal.len(), length)?;
    same_length("behavior", behavior.len(), proximal.len())?;
    same_length("mask", mask.len(), proximal.len())?;
    let zeros = vec![R::from_f64(0.0); proximal.len()];
    let mut result = ImportanceWeights {
        log_ratio: zeros.clone(),
        weights: zeros.clone(),
        truncated: zeros,
        sequences: Vec::with_capacity(batch),
        non_finite: 0,
    };
    for row in 0..batch {
        let (mut tokens, mut log_weight, mut k3_sum, mut max_abs_log_ratio) = (0, 0.0, 0.0, 0.0_f64);
        for t in (row * length..(row + 1) * length).filter(|&t| mask[t]) {
            let difference = proximal[t].into() - behavior[t].into();
            result.non_finite += usize::from(!difference.is_finite());
            let log_ratio = if difference.is_finite() { within(difference, config.log_clamp) } else { 0.0 };
            let weight = log_ratio.exp();
            tokens += 1;
            log_weight += log_ratio;
            k3_sum += weight - 1.0 - log_ratio;
            max_abs_log_ratio = max_abs_log_ratio.max(log_ratio.abs());
            result.log_ratio[t] = R::from_f64(log_ratio);
            result.weights[t] = R::from_f64(weight);
            result.truncated[t] = R::from_f64(weight.min(config.weight_cap));
        }
        if tokens == 0 {
            return Err(Error::EmptyRow { row });
        }
        let k3 = k3_sum / tokens as f64;
        let keep = k3 <= config.sequence_k3_limit && max_abs_log_ratio <= config.token_log_ratio_limit;
        result.sequences.push(SequenceWeight { tokens, log_weight, k3, max_abs_log_ratio, keep });
    }
    Ok(result)
}

impl<R: Real> ImportanceWeights<R> {
    /// The batch in a few numbers; zeros for an empty batch. `mask` is the one that the weights were made with.
    pub fn summary(&self, mask: &[bool]) -> Result<WeightSummary, Error> {
        same_length("mask", mask.len(), self.weights.len())?;
        let generated = || (0..mask.len()).filter(|&t| mask[t]);
        let tokens = generated().count().max(1) as f64;
        let sequences = self.sequences.len().max(1) as f64;
        let token_logs: Vec<f64> = generated().map(|t| self.log_ratio[t].into()).collect();
        let sequence_logs: Vec<f64> = self.sequences.iter().map(|sequence| sequence.log_weight).collect();
        let truncated = generated().filter(|&t| self.truncated[t].into() < self.weights[t].into()).count();
        let rejected = self.sequences.iter().filter(|sequence| !sequence.keep).count();
        Ok(WeightSummary {
            mean_weight: generated().map(|t| self.weights[t].into()).sum::<f64>() / tokens,
            max_weight: generated().map(|t| self.weights[t].into()).fold(0.0, f64::max),
            truncated_fraction: truncated as f64 / tokens,
            rejected_fraction: rejected as f64 / sequences,
            mean_k3: self.sequences.iter().map(|sequence| sequence.k3).sum::<f64>() / sequences,
            token_ess_ratio: effective_sample_size(&token_logs) / tokens,
            sequence_ess_ratio: effective_sample_size(&sequence_logs) / sequences,
        })
    }
}

/// `(Σ w)² / Σ w²` of weights given as logs of any size: how many equal weights would be worth as much. 0 for none.
#[must_use]
pub fn effective_sample_size(log_weights: &[f64]) -> f64 {
    let largest = log_weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !largest.is_finite() {
        return 0.0;
    }
    let scaled = || log_weights.iter().map(|log_weight| (log_weight - largest).exp());
    scaled().sum::<f64>().powi(2) / scaled().map(|weight| weight * weight).sum::<f64>()
}

/// Log of each sequence's importance weight: Σ over its generated tokens of `clamp(log_ratio, ±log_clamp)`. A token whose
/// ratio is not finite counts as 0.
pub fn sequence_log_weights<R: Real>(
    log_ratio: &[R],
    mask: &[bool],
    length: usize,
    log_clamp: f64,
) -> Result<Vec<f64>, Error> {
    rows(log_ratio.len(), length)?;
    same_length("mask", mask.len(), log_ratio.len())?;
    let row_sum = |(ratios, mask): (&[R], &[bool])| {
        let generated = ratios.iter().zip(mask).filter(|(_, generated)| **generated);
        generated
            .map(|(&ratio, _)| ratio.into())
            .filter(|ratio: &f64| ratio.is_finite())
            .map(|r| within(r, log_clamp))
            .sum()
    };
    Ok(log_ratio.chunks(length).zip(mask.chunks(length)).map(row_sum).collect())
}

/// A self-normalised importance-sampling estimate.
#[derive(Clone, Debug, PartialEq)]
pub struct SelfNormalized {
    /// Σ W C / Σ W.
    pub mean: f64,
    /// √(Σ W² (C − mean)²) / Σ W, by the delta method.
    pub standard_error: f64,
    /// W = min(exp(log weight), cap) of each sample.
    pub weights: Vec<f64>,
    /// (Σ W)² / Σ W².
    pub effective_samples: f64,
    /// Samples whose weight was cut.
    pub capped: usize,
}

/// Mean of `values` under the learner's policy from samples of an older one, weighted by whole-sequence weights capped at
/// `cap`. Biased towards the older policy by as much as the cap cuts.
pub fn self_normalized_mean(log_weights: &[f64], values: &[f64], cap: f64) -> Result<SelfNormalized, Error> {
    same_length("values", values.len(), log_weights.len())?;
    if values.is_empty() {
        return Err(Error::TooFew { what: "a self-normalised mean", needed: 1, got: 0 });
    }
    let raw = || log_weights.iter().map(|log_weight| log_weight.exp());
    let weights: Vec<f64> = raw().map(|weight| weight.min(cap)).collect();
    let total: f64 = weights.iter().sum();
    if !(total.is_finite() && total > 0.0) {
        return Err(Error::Value { what: "the sum of the weights", value: total, needed: "finite and above 0" });
    }
    let mean = weights.iter().zip(values).map(|(weight, value)| weight * value).sum::<f64>() / total;
    let spread: f64 = weights.iter().zip(values).map(|(weight, value)| (weight * (value - mean)).powi(2)).sum();
    let squares: f64 = weights.iter().map(|weight| weight * weight).sum();
    Ok(SelfNormalized {
        mean,
        standard_error: spread.sqrt() / total,
        effective_samples: total * total / squares,
        capped: raw().filter(|&weight| weight > cap).count(),
        weights,
    })
}
