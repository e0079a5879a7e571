//! The passes over a batch: optimiser steps on its minibatches, under the guards.

use super::experience::Experience;
use super::phases::Phase;
use super::report::Totals;
use super::worker::{Extent, Forward, Minibatch, Part};
use super::{Learner, Nets};
use crate::TrainingError;
use crate::workers::side_by_side;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use saddle_algorithms::guards::{EpochPlan, UpdatePlan};
use saddle_lm::Step;

impl Learner {
    /// Passes over the batch until they are done, or the policy has moved far enough. `shared` are the first step's
    /// forward passes, if they have been made.
    pub(super) fn passes(
        &mut self,
        experience: &Experience<'_>,
        shared: Option<Vec<Forward>>,
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
        shared: Option<Vec<Forward>>,
    ) -> Result<Minibatch, TrainingError> {
        let whole = Extent::new(experience, rows);
        let parts: Vec<Vec<Part>> = match shared {
            Some(forwards) => forwards.into_iter().map(|forward| vec![Part::Seen(forward)]).collect(),
            None => {
                let shares = self.shares(experience.rollouts, rows).into_iter();
                shares.map(|groups| groups.into_iter().map(Part::Rows).collect()).collect()
            }
        };
        let jobs = self.workers.iter_mut().zip(parts).collect();
        let sums = side_by_side(jobs, |(worker, parts)| worker.accumulate(experience, whole, nets, parts))?;
        self.stopwatch.absorb(self.workers.iter().map(|worker| &worker.stopwatch));
        let mut minibatch = Minibatch::new(experience.values.len());
        sums.iter().for_each(|sum| minibatch.add(sum));
        if nets == Nets::PolicyAndCritics {
            let (coefficient, budget) = (self.config.ppo.ptx_coefficient, self.config.ppo.micro_batch_tokens);
            minibatch.ptx_loss =
                self.ptx.accumulate(&self.policy, &mut self.optimizer, coefficient, rows.len(), budget)?;
            self.stopwatch.lap(Phase::Policy);
        }
        Ok(minibatch)
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
