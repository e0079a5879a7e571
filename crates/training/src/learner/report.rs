//! What an update did, in numbers.

use super::experience::Experience;
use super::worker::Minibatch;
use crate::metrics::{GuardMetrics, ImportanceMetrics, KlMetrics, Stream, StreamMetrics, UpdateMetrics};
use crate::statistics::{explained_variance, masked_mean};
use saddle_algorithms::guards::GuardCounts;

/// Sums over the steps of an update.
pub(super) struct Totals {
    steps: f64,
    policy_loss: f64,
    ptx_loss: Option<f64>,
    critic_losses: Vec<f64>,
    clipped: f64,
    /// Of the last step.
    k3: f64,
    policy_gradient_norm: f64,
    critic_gradient_norm: f64,
}

impl Totals {
    pub(super) fn new(streams: usize) -> Self {
        Self {
            steps: 0.0,
            policy_loss: 0.0,
            ptx_loss: None,
            critic_losses: vec![0.0; streams],
            clipped: 0.0,
            k3: 0.0,
            policy_gradient_norm: 0.0,
            critic_gradient_norm: 0.0,
        }
    }

    /// Adds a step on `minibatch`, with the norms of its gradients.
    pub(super) fn add(&mut self, minibatch: &Minibatch, policy_gradient_norm: f64, critic_gradient_norm: f64) {
        self.steps += 1.0;
        self.policy_loss += minibatch.policy_loss;
        self.ptx_loss = minibatch.ptx_loss.or(self.ptx_loss);
        for (total, loss) in self.critic_losses.iter_mut().zip(&minibatch.critic_losses) {
            *total += loss;
        }
        self.clipped += minibatch.clipped;
        self.k3 = minibatch.k3;
        self.policy_gradient_norm += policy_gradient_norm;
        self.critic_gradient_norm += critic_gradient_norm;
    }

    /// Finite if every loss was.
    pub(super) fn losses(&self) -> f64 {
        self.policy_loss + self.ptx_loss.unwrap_or(0.0) + self.critic_losses.iter().sum::<f64>()
    }

    /// Finite if every gradient was.
    pub(super) fn gradient_norms(&self) -> f64 {
        self.policy_gradient_norm + self.critic_gradient_norm
    }
}

/// What an update did; guards are told of by what they counted in it.
pub(super) fn metrics<'a>(
    experience: &Experience<'_>,
    totals: &Totals,
    constraints: impl Iterator<Item = &'a str>,
    (before, after): (&GuardCounts, &GuardCounts),
) -> UpdateMetrics {
    let steps = totals.steps.max(1.0);
    let rollouts = experience.rollouts.len() as f64;
    let lags = &experience.off_policy.lags;
    let summary = &experience.off_policy.summary;
    let non_finite_weights = experience.off_policy.weights.as_ref().map_or(0, |weights| weights.non_finite);
    let count = |count: fn(&GuardCounts) -> u64| count(after) - count(before);
    let names = std::iter::once(Stream::Reward).chain(constraints.map(|name| Stream::Cost(name.to_owned())));
    let streams = names.zip(&experience.values).zip(experience.targets.iter().zip(&totals.critic_losses));
    let streams = streams.map(|((stream, values), (targets, loss))| StreamMetrics {
        stream,
        critic_loss: loss / steps,
        explained_variance: explained_variance(&values.values, &targets.values, &experience.mask),
    });
    UpdateMetrics {
        staleness_versions: (
            lags.iter().sum::<u64>() as f64 / rollouts,
            lags.iter().copied().max().unwrap_or(0) as f64,
        ),
        importance: ImportanceMetrics {
            weight_mean: summary.mean_weight,
            weight_max: summary.max_weight,
            ess_ratio_token: summary.token_ess_ratio,
            ess_ratio_sequence: summary.sequence_ess_ratio,
            truncated_ratio: summary.truncated_fraction,
            non_finite_tokens: non_finite_weights as f64,
        },
        rejected_ratio: summary.rejected_fraction,
        kl: KlMetrics {
            behaviour_proximal: summary.mean_k3,
            proximal_current: totals.k3,
            current_reference: experience.reference_kl(),
        },
        entropy: masked_mean(&experience.entropy.values, &experience.mask),
        clip_ratio: totals.clipped / steps,
        policy_loss: totals.policy_loss / steps,
        ptx_loss: totals.ptx_loss,
        gradient_norm: (totals.policy_gradient_norm / steps, totals.critic_gradient_norm / steps),
        guards: GuardMetrics {
            stopped_by_kl: count(|counts| counts.stopped_early),
            skipped_rejected: count(|counts| counts.skipped_rejected),
            skipped_drift: count(|counts| counts.skipped_drift),
            skipped_non_finite: count(|counts| counts.non_finite),
        },
        log_prob_gap: experience.log_prob_gap,
        streams: streams.collect(),
        ..UpdateMetrics::default()
    }
}
