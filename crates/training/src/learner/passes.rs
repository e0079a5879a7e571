//! The passes over a batch: optimiser steps on its minibatches, under the guards.
//!
//! A minibatch goes through the models in micro-batches. The loss of each is a mean, and is weighted by its share of
//! what the mean is over (responses or generated tokens, rejected ones included), so that a step does not depend on how
//! its minibatch was cut.

use super::experience::Experience;
use super::phases::Phase;
use super::report::Totals;
use super::{Forward, Learner, Nets};
use crate::TrainingError;
use crate::grid::Grid;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use saddle_algorithms::guards::{EpochPlan, UpdatePlan};
use saddle_algorithms::losses::{
    DecoupledPolicyInputs, LossAggregation, PolicyLoss, clipped_policy_loss, critic_loss, decoupled_policy_loss,
};
use saddle_lm::{ResponseLogProbs, Step};
use tch::Tensor;

/// Means over a minibatch, added up from its micro-batches.
pub(super) struct Minibatch {
    pub(super) policy_loss: f64,
    pub(super) ptx_loss: Option<f64>,
    pub(super) critic_losses: Vec<f64>,
    pub(super) clipped: f64,
    pub(super) k3: f64,
}

impl Minibatch {
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

impl Learner {
    /// Passes over the batch until they are done, or the policy has moved far enough. `shared` is the first step's
    /// forward pass, if it has been made.
    pub(super) fn passes(
        &mut self,
        experience: &Experience<'_>,
        shared: Option<Forward>,
    ) -> Result<Totals, TrainingError> {
        self.stopwatch.skip();
        let summary = &experience.off_policy.summary;
        let nets = match self.guards.before_update(summary.rejected_fraction, summary.mean_k3) {
            UpdatePlan::Full => Nets::PolicyAndCritics,
            UpdatePlan::SkipPolicyRejected | UpdatePlan::SkipPolicyDrift => Nets::CriticsOnly,
        };
        let mut shared = shared.filter(|_| nets == Nets::PolicyAndCritics);
        let mut totals = Totals::new(experience.values.len());
        let rows = experience.rollouts.len();
        let mut random = ChaCha8Rng::seed_from_u64(self.config.run.seed);
        random.set_stream(self.version.0);
        for _ in 0..self.config.ppo.epochs {
            let mut order: Vec<usize> = (0..rows).collect();
            order.shuffle(&mut random);
            for rows in order.chunks(rows.div_ceil(self.config.ppo.minibatches)) {
                let minibatch = self.accumulate(experience, rows, nets, shared.take())?;
                let plan = self.step(&minibatch, nets, &mut totals)?;
                self.stopwatch.lap(Phase::Optimizer);
                if plan == EpochPlan::Stop {
                    return Ok(totals);
                }
            }
        }
        Ok(totals)
    }

    /// Adds the gradients of `rows`, a minibatch, to those of the coming step.
    pub(super) fn accumulate(
        &mut self,
        experience: &Experience<'_>,
        rows: &[usize],
        nets: Nets,
        mut shared: Option<Forward>,
    ) -> Result<Minibatch, TrainingError> {
        let critic_losses = vec![0.0; experience.values.len()];
        let mut minibatch = Minibatch { policy_loss: 0.0, ptx_loss: None, critic_losses, clipped: 0.0, k3: 0.0 };
        let tokens = |rows: &[usize]| {
            rows.iter().map(|row| experience.rollouts[*row].rollout.tokens.len()).sum::<usize>() as f64
        };
        let groups = match &shared {
            Some(forward) => vec![forward.rows.clone()],
            None => self.micro_batches(experience.rollouts, rows),
        };
        for group in groups {
            let token_share = tokens(&group) / tokens(rows);
            let loss = match self.config.ppo.loss_aggregation {
                LossAggregation::PerSample => group.len() as f64 / rows.len() as f64,
                LossAggregation::Token => token_share,
            };
            let share = Share { tokens: token_share, loss };
            let phases = [Phase::Policy, Phase::Critic];
            let forward = shared.take().map_or_else(|| self.forward(experience.rollouts, group, nets, phases), Ok)?;
            if let Some(policy) = &forward.policy {
                self.accumulate_policy(experience, &forward, policy, share, &mut minibatch)?;
            }
            self.stopwatch.lap(Phase::Policy);
            self.accumulate_critics(experience, &forward, share, &mut minibatch)?;
            self.stopwatch.lap(Phase::Critic);
        }
        if nets == Nets::PolicyAndCritics {
            let (coefficient, budget) = (self.config.ppo.ptx_coefficient, self.config.ppo.micro_batch_tokens);
            minibatch.ptx_loss =
                self.ptx.accumulate(&self.policy, &mut self.optimizer, coefficient, rows.len(), budget)?;
            self.stopwatch.lap(Phase::Policy);
        }
        Ok(minibatch)
    }

    fn accumulate_policy(
        &mut self,
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
        self.optimizer.accumulate(self.policy.parameters(), &loss.f_mul_scalar(share.loss)?)?;
        Ok(())
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
        &mut self,
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

    /// Takes the step whose gradients were added up. A loss that is not finite leaves all weights as they were; a policy
    /// that has moved too far from π_k stays where it is, and the update ends with the critics' step.
    fn step(&mut self, minibatch: &Minibatch, nets: Nets, totals: &mut Totals) -> Result<EpochPlan, TrainingError> {
        if !minibatch.losses().is_finite() {
            self.optimizer.discard()?;
            self.critics.discard()?;
            totals.add(minibatch, 0.0, 0.0);
            return Ok(EpochPlan::Continue);
        }
        let mut plan = EpochPlan::Continue;
        let mut policy = Step { gradient_norm: 0.0, taken: true };
        if nets == Nets::PolicyAndCritics {
            plan = self.guards.after_minibatch(minibatch.k3);
            match plan {
                EpochPlan::Continue => {
                    let rate = self.learning_rate();
                    policy = self.optimizer.step(self.policy.parameters_mut(), rate)?;
                }
                EpochPlan::Stop => self.optimizer.discard()?,
            }
        }
        let critics = self.critics.step()?;
        totals.add(minibatch, policy.gradient_norm, critics.gradient_norm);
        Ok(plan)
    }
}

/// The rows of a micro-batch, as wide as it is.
fn cut(grid: &Grid, forward: &Forward) -> Result<Tensor, TrainingError> {
    let mask = forward.batch.mask();
    grid.rows(&forward.rows, mask.size()[1] as usize, mask.device())
}
