//! `[ppo]`: the policy update.

use super::Validate;
use super::sections::require_workers;
use saddle_algorithms::losses::LossAggregation;
use saddle_core::Problems;
use saddle_data::Source;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[ppo]`: the policy update (PPO, arXiv 1707.06347; Safe RLHF, arXiv 2310.12773, equation 9).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PpoSection {
    /// Updates to make; each one consumes a batch of rollouts.
    pub updates: u64,
    /// Rollouts for one update.
    pub batch_rollouts: usize,
    /// Updates that a scored batch waits before the learner takes it: an experiment's knob, which makes the synchronous
    /// schedule train on rollouts of so many versions ago.
    #[serde(alias = "staleness")]
    pub delay_updates: u64,
    /// Passes over a batch.
    pub epochs: usize,
    /// Optimiser steps in one pass over a batch.
    pub minibatches: usize,
    /// At most so many tokens go through a model at once.
    pub micro_batch_tokens: usize,
    /// Threads that each compute the log-probs, values and gradients of a share of a batch's rollouts, with their part of the
    /// learner's threads, at least one; on the CPU. Small models gain more from this than from threads within an operation;
    /// each one beyond the first takes memory for another gradient of the policy and the critics.
    pub workers: usize,
    /// ε: the ratio of new to old probability is clipped to 1 ± ε.
    pub clip_ratio: f64,
    /// How the loss of tokens becomes one number.
    pub loss_aggregation: LossAggregation,
    /// Whether advantages are brought to mean zero and variance one over a batch.
    pub advantages: AdvantageNormalization,
    /// Weight of the cross-entropy on supervised rows (PTX); 0 means none.
    pub ptx_coefficient: f64,
    /// Supervised rows for the PTX loss.
    pub ptx_data: Vec<Source>,
}

/// What is done to advantages before the policy loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdvantageNormalization {
    /// Nothing, as published.
    None,
    /// Mean zero and variance one over the generated tokens of a batch.
    #[default]
    Whiten,
}

/// Prompts that a run may draw: what a metric can count without rounding.
const MOST_PROMPTS: u64 = 1 << 53;

impl Default for PpoSection {
    fn default() -> Self {
        Self {
            updates: 100,
            batch_rollouts: 128,
            delay_updates: 0,
            epochs: 1,
            minibatches: 1,
            micro_batch_tokens: 8192,
            workers: 1,
            clip_ratio: 0.2,
            loss_aggregation: LossAggregation::PerSample,
            advantages: AdvantageNormalization::Whiten,
            ptx_coefficient: 0.0,
            ptx_data: Vec::new(),
        }
    }
}

impl Validate for PpoSection {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        for (key, count) in [
            ("updates", self.updates as usize),
            ("batch_rollouts", self.batch_rollouts),
            ("epochs", self.epochs),
            ("minibatches", self.minibatches),
            ("micro_batch_tokens", self.micro_batch_tokens),
        ] {
            problems.require(count > 0, key, "must be at least 1");
        }
        let prompts = self.updates.checked_mul(self.batch_rollouts as u64).filter(|prompts| *prompts <= MOST_PROMPTS);
        problems.require(
            prompts.is_some(),
            "updates",
            format!("times batch_rollouts must be at most {MOST_PROMPTS} prompts, is {} updates", self.updates),
        );
        require_workers(&mut problems, self.workers);
        problems.require(
            self.minibatches <= self.batch_rollouts,
            "minibatches",
            format!("must be at most batch_rollouts = {}, is {}", self.batch_rollouts, self.minibatches),
        );
        problems.require(
            self.delay_updates < self.updates.max(1),
            "delay_updates",
            format!("must be below updates = {}, is {}: no batch would wait so long", self.updates, self.delay_updates),
        );
        let clip = self.clip_ratio;
        problems.require(clip > 0.0, "clip_ratio", format!("must be positive, is {clip}"));
        let ptx = self.ptx_coefficient;
        problems.require(ptx.is_finite() && ptx >= 0.0, "ptx_coefficient", format!("must be zero or more, is {ptx}"));
        problems.require(
            (self.ptx_coefficient > 0.0) != self.ptx_data.is_empty(),
            "ptx_data",
            "name supervised sources exactly when ptx_coefficient is above 0",
        );
        problems
    }
}
