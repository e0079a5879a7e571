//! How far a batch is from the weights that learn from it: staleness, and importance weights π_k/μ.
//!
//! The log-probs that sampling recorded differ from recomputed ones in the last digits, even under equal weights: the
//! one decodes a token at a time, the other reads whole sequences. A rollout that the current weights have sampled
//! throughout therefore counts with μ := π_k, so that its weights are one to the bit, and where all rollouts are of
//! this kind there is nothing to correct and no weights are made: the update is that of plain PPO. Where generation computes
//! in another precision than learning, μ is another policy even under equal weights, and every rollout is corrected.

use crate::TrainingError;
use crate::config::CorrectionSection;
use crate::grid::Grid;
use saddle_algorithms::weights::{ImportanceWeights, WeightSummary, importance_weights};
use saddle_core::{PolicyVersion, ScoredRollout};

/// What a batch of the current policy comes to.
const ON_POLICY: WeightSummary = WeightSummary {
    mean_weight: 1.0,
    max_weight: 1.0,
    truncated_fraction: 0.0,
    rejected_fraction: 0.0,
    mean_k3: 0.0,
    token_ess_ratio: 1.0,
    sequence_ess_ratio: 1.0,
};

/// A batch against the current weights.
pub(super) struct OffPolicy {
    /// Versions that each rollout's oldest token is behind.
    pub(super) lags: Vec<u64>,
    /// None where nothing is to be corrected.
    pub(super) weights: Option<ImportanceWeights<f32>>,
    pub(super) summary: WeightSummary,
}

impl OffPolicy {
    /// Measures `rollouts` against the weights of `version`, under which their tokens' log-probs are `proximal`.
    /// `same_policy` says that equal weights make μ and π_k one policy.
    pub(super) fn measure(
        rollouts: &[ScoredRollout],
        (version, same_policy): (PolicyVersion, bool),
        (proximal, mask): (&Grid, &[bool]),
        section: &CorrectionSection,
    ) -> Result<Self, TrainingError> {
        let oldest = rollouts.iter().map(|each| each.rollout.oldest_version().unwrap_or(version));
        let lags: Vec<u64> = oldest.map(|oldest| version.0.saturating_sub(oldest.0)).collect();
        let on_policy = |lag: &u64| *lag == 0 && same_policy;
        if lags.iter().all(on_policy) {
            return Ok(Self { lags, weights: None, summary: ON_POLICY });
        }
        let behaviour = rollouts.iter().zip(&lags).enumerate().map(|(row, (each, lag))| match on_policy(lag) {
            true => &proximal.values[row * proximal.width..][..each.rollout.tokens.len()],
            false => each.rollout.log_probs.as_slice(),
        });
        let behaviour = Grid::from_rows(behaviour, proximal.width);
        let weights =
            importance_weights(&proximal.values, &behaviour.values, mask, proximal.width, &section.importance())?;
        let summary = weights.summary(mask)?;
        Ok(Self { lags, weights: Some(weights), summary })
    }
}
