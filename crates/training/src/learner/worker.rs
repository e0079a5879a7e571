//! What one of the learner's workers does: forward and backward passes of its share of the rollouts.
//!
//! A minibatch goes through the models in micro-batches. The loss of each is a mean, and is weighted by its share of
//! what the mean is over (responses or generated tokens, rejected ones included), so that a step does not depend on how
//! its minibatch was cut.

use super::Nets;
use super::experience::Experience;
use super::phases::{Phase, Stopwatch};
use crate::TrainingError;
use crate::config::TrainConfig;
use crate::critics::CriticReplicas;
use crate::grid::Grid;
use crate::workers::Replica;
use saddle_algorithms::losses::{
    DecoupledPolicyInputs, LossAggregation, PolicyLoss, clipped_policy_loss, critic_loss, decoupled_policy_loss,
};
use saddle_core::ScoredRollout;
use saddle_lm::{Policy, ResponseLogProbs, SequenceBatch};
use std::sync::Arc;
use tch::{Tensor, no_grad_guard};

/// The models as one worker has them.
#[derive(Debug)]
pub(super) struct Worker {
    config: Arc<TrainConfig>,
    policy: Replica<Policy>,
    critics: CriticReplicas,
    /// Of its part of what the workers do side by side.
    pub(super) stopwatch: Stopwatch,
}

/// A forward pass of some of the rollouts.
pub(super) struct Forward {
    pub(super) rows: Vec<usize>,
    batch: SequenceBatch,
    /// None of a pass for the critics only.
    pub(super) policy: Option<ResponseLogProbs>,
    /// One for the reward stream, then one for each cost.
    pub(super) values: Vec<Tensor>,
}

/// A micro-batch of a step.
pub(super) enum Part {
    /// Rows that are yet to go forward.
    Rows(Vec<usize>),
    /// Rows that have.
    Seen(Forward),
}

/// How much there is of what losses are means over.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    rows: usize,
    /// Generated ones.
    tokens: usize,
}

impl Extent {
    /// All of `rows`.
    pub(super) fn new(experience: &Experience<'_>, rows: &[usize]) -> Self {
        Self { rows: rows.len(), tokens: rows.iter().map(|row| experience.rollouts[*row].rollout.tokens.len()).sum() }
    }
}

/// Means over a minibatch, added up from its micro-batches.
#[derive(Debug)]
pub(super) struct Minibatch {
    pub(super) policy_loss: f64,
    pub(super) ptx_loss: Option<f64>,
    pub(super) critic_losses: Vec<f64>,
    pub(super) clipped: f64,
    pub(super) k3: f64,
}

impl Minibatch {
    pub(super) fn new(streams: usize) -> Self {
        Self { policy_loss: 0.0, ptx_loss: None, critic_losses: vec![0.0; streams], clipped: 0.0, k3: 0.0 }
    }

    /// Adds what another worker has of the same minibatch.
    pub(super) fn add(&mut self, other: &Self) {
        self.policy_loss += other.policy_loss;
        for (sum, loss) in self.critic_losses.iter_mut().zip(&other.critic_losses) {
            *sum += loss;
        }
        self.clipped += other.clipped;
        self.k3 += other.k3;
    }

    /// Finite if every loss is.
    pub(super) fn losses(&self) -> f64 {
        self.policy_loss + self.ptx_loss.unwrap_or(0.0) + self.critic_losses.iter().sum::<f64>()
    }
}

/// A micro-batch's part of its minibatch, in 0..=1.
#[derive(Clone, Copy)]
struct Share {
    /// Of the generated tokens.
    tokens: f64,
    /// Of what the losses are means over.
    loss: f64,
}

impl Worker {
    /// One that computes with these.
    pub(super) fn new(config: Arc<TrainConfig>, policy: Replica<Policy>, critics: CriticReplicas) -> Self {
        Self { config, policy, critics, stopwatch: Stopwatch::start() }
    }

    /// Forward passes of `groups` under the weights as they are, which keep what a backward pass needs if `keep` says so.
    pub(super) fn forward_shares(
        &mut self,
        rollouts: &[ScoredRollout],
        groups: Vec<Vec<usize>>,
        keep: bool,
    ) -> Result<Vec<Forward>, TrainingError> {
        self.stopwatch.skip();
        let _guard = (!keep).then(no_grad_guard);
        let phases = [Phase::LogProb, Phase::Value];
        groups.into_iter().map(|rows| self.forward(rollouts, rows, Nets::PolicyAndCritics, phases)).collect()
    }

    /// Adds the gradients of `parts`, its share of a minibatch, to those of the coming step. Returns what they add to its means.
    pub(super) fn accumulate(
        &mut self,
        experience: &Experience<'_>,
        whole: Extent,
        nets: Nets,
        parts: Vec<Part>,
    ) -> Result<Minibatch, TrainingError> {
        self.stopwatch.skip();
        let mut minibatch = Minibatch::new(experience.values.len());
        for part in parts {
            let forward = match part {
                Part::Seen(forward) => forward,
                Part::Rows(rows) => self.forward(experience.rollouts, rows, nets, [Phase::Policy, Phase::Critic])?,
            };
            let own = Extent::new(experience, &forward.rows);
            let tokens = own.tokens as f64 / whole.tokens as f64;
            let loss = match self.config.ppo.loss_aggregation {
                LossAggregation::PerSample => own.rows as f64 / whole.rows as f64,
                LossAggregation::Token => tokens,
            };
            let share = Share { tokens, loss };
            if let Some(policy) = &forward.policy {
                self.accumulate_policy(experience, &forward, policy, share, &mut minibatch)?;
            }
            self.stopwatch.lap(Phase::Policy);
            self.accumulate_critics(experience, &forward, share, &mut minibatch)?;
            self.stopwatch.lap(Phase::Critic);
        }
        Ok(minibatch)
    }

    /// Its time is booked on `phases`: that of the policy, that of the critics.
    fn forward(
        &self,
        rollouts: &[ScoredRollout],
        rows: Vec<usize>,
        nets: Nets,
        phases: [Phase; 2],
    ) -> Result<Forward, TrainingError> {
        let sequence = |row: &usize| {
            let rollout = &rollouts[*row].rollout;
            (rollout.prompt.tokens.as_slice(), rollout.tokens.as_slice())
        };
        let policy = &self.policy.model;
        let batch = SequenceBatch::new(&rows.iter().map(sequence).collect::<Vec<_>>(), policy.device())?;
        let policy = match nets {
            Nets::PolicyAndCritics => Some(policy.response_log_probs(&batch, self.config.generation.temperature)?),
            Nets::CriticsOnly => None,
        };
        self.stopwatch.lap(phases[0]);
        let values = self.critics.values(&batch)?;
        self.stopwatch.lap(phases[1]);
        Ok(Forward { rows, batch, policy, values })
    }

    fn accumulate_policy(
        &self,
        experience: &Experience<'_>,
        forward: &Forward,
        policy: &ResponseLogProbs,
        share: Share,
        minibatch: &mut Minibatch,
    ) -> Result<(), TrainingError> {
        let PolicyLoss { loss, clipped_fraction, k3 } = self.policy_loss(experience, forward, policy)?;
        minibatch.policy_loss += loss.f_double_value(&[])? * share.loss;
        minibatch.clipped += clipped_fraction * share.tokens;
        minibatch.k3 += k3 * share.tokens;
        let policy = self.policy.model.parameters();
        Ok(policy.add_gradient(&loss.f_mul_scalar(share.loss)?, &self.policy.sum)?)
    }

    /// PPO's clipped loss, or its off-policy form where the batch is stale and to be corrected.
    fn policy_loss(
        &self,
        experience: &Experience<'_>,
        forward: &Forward,
        policy: &ResponseLogProbs,
    ) -> Result<PolicyLoss, TrainingError> {
        let ppo = &self.config.ppo;
        let mask = forward.batch.mask();
        let (proximal, advantages) = (cut(&experience.proximal, forward)?, cut(&experience.advantages, forward)?);
        let Some(correction) = &experience.correction else {
            let (ratio, aggregation) = (ppo.clip_ratio, ppo.loss_aggregation);
            return Ok(clipped_policy_loss(&policy.log_probs, &proximal, &advantages, mask, ratio, aggregation)?);
        };
        let inputs = DecoupledPolicyInputs {
            log_probs: &policy.log_probs,
            proximal_log_probs: &proximal,
            truncated_weights: &cut(&correction.weights, forward)?,
            sequence_keep: &correction.keep.rows(&forward.rows, 1, mask.device())?.f_squeeze_dim(1)?,
            advantages: &advantages,
            mask,
        };
        Ok(decoupled_policy_loss(&inputs, ppo.clip_ratio, correction.dual_clip, ppo.loss_aggregation)?)
    }

    fn accumulate_critics(
        &self,
        experience: &Experience<'_>,
        forward: &Forward,
        share: Share,
        minibatch: &mut Minibatch,
    ) -> Result<(), TrainingError> {
        let (clip, aggregation) = (self.config.critics.clip_value, self.config.ppo.loss_aggregation);
        let mut losses = Vec::with_capacity(forward.values.len());
        for (stream, values) in forward.values.iter().enumerate() {
            let old = cut(&experience.values[stream], forward)?;
            let target = cut(&experience.targets[stream], forward)?;
            let loss = critic_loss(values, &old, &target, forward.batch.mask(), clip, aggregation)?;
            minibatch.critic_losses[stream] += loss.f_double_value(&[])? * share.loss;
            losses.push(loss.f_mul_scalar(share.loss)?);
        }
        self.critics.accumulate(&losses)
    }
}

/// The rows of a micro-batch, as wide as it is.
fn cut(grid: &Grid, forward: &Forward) -> Result<Tensor, TrainingError> {
    let mask = forward.batch.mask();
    grid.rows(&forward.rows, mask.size()[1] as usize, mask.device())
}
