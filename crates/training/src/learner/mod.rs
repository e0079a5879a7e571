//! The learner: one PPO-Lagrangian update from a batch of scored rollouts (Safe RLHF, arXiv 2310.12773, section 3.2).
//!
//! It owns the policy, the critics and their optimisers; the multipliers come from outside with every batch, so no
//! sample carries a stale λ. An update is: log-probs π_k and values under the weights as they are, how far the rollouts
//! are from them, advantages, then some passes over the batch. Where the first step's forward pass is that of π_k, it
//! is run once. Workers share each of these (see [`crate::workers`]). [`Guards`] decide what is left out of an update, and when training is given up.

mod experience;
mod off_policy;
mod passes;
mod phases;
mod report;
mod worker;

use crate::TrainingError;
use crate::config::TrainConfig;
use crate::critics::CriticSet;
use crate::metrics::UpdateMetrics;
use crate::ptx::Ptx;
use crate::workers::{Replica, shares};
use phases::Stopwatch;
use saddle_algorithms::divergence::KlCoefficient;
use saddle_algorithms::guards::{Guards, Health};
use saddle_core::{PolicyVersion, ScoredRollout};
use saddle_lm::{AdamW, Policy, learning_rate_factor, micro_batches};
use std::sync::Arc;
use worker::Worker;

/// A policy in training.
#[derive(Debug)]
pub struct Learner {
    config: Arc<TrainConfig>,
    policy: Policy,
    optimizer: AdamW,
    critics: CriticSet,
    workers: Vec<Worker>,
    ptx: Ptx,
    version: PolicyVersion,
    guards: Guards,
    kl_coefficient: KlCoefficient,
    /// Of the update under way.
    stopwatch: Stopwatch,
}

/// Which models a forward pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nets {
    PolicyAndCritics,
    CriticsOnly,
}

impl Learner {
    /// A learner that starts from `policy`, whose weights it will change; `ptx` may be without rows.
    ///
    /// # Errors
    /// Fails if the optimiser's memory cannot be had.
    pub fn new(config: TrainConfig, policy: Policy, critics: CriticSet, ptx: Ptx) -> Result<Self, TrainingError> {
        let precision = config.precision.learning;
        let (policy, mut critics) = (policy.trainable()?.in_precision(precision), critics.in_precision(precision));
        let mut optimizer = AdamW::new(config.policy.adamw.clone(), policy.parameters())?;
        let config = Arc::new(config);
        let workers = (0..config.ppo.workers).map(|worker| {
            let policy = Replica { model: policy.replica()?, sum: optimizer.sum(worker)? };
            Ok::<_, TrainingError>(Worker::new(Arc::clone(&config), policy, critics.replicas(worker)?))
        });
        let workers = workers.collect::<Result<_, _>>()?;
        let guards = Guards::new(config.guards);
        let kl_coefficient = KlCoefficient::new(config.shaping.kl_coefficient);
        Ok(Self {
            config,
            policy,
            optimizer,
            critics,
            workers,
            ptx,
            version: PolicyVersion(0),
            guards,
            kl_coefficient,
            stopwatch: Stopwatch::start(),
        })
    }

    /// The policy as it is now.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// How many updates it has seen.
    #[must_use]
    pub fn version(&self) -> PolicyVersion {
        self.version
    }

    /// Makes one update from `rollouts`, each with at least one response token and one cost for each of `lambdas`.
    /// Returns what it did.
    ///
    /// # Errors
    /// [`TrainingError::Diverged`] when as many updates in a row had numbers that are not finite as the guards allow.
    pub fn update(&mut self, rollouts: &[ScoredRollout], lambdas: &[f64]) -> Result<UpdateMetrics, TrainingError> {
        let before = *self.guards.counts();
        self.stopwatch = Stopwatch::start();
        let (experience, shared) = self.experience(rollouts, lambdas)?;
        let totals = self.passes(&experience, shared)?;
        self.version = self.version.next();
        if self.guards.after_update(totals.losses(), totals.gradient_norms()) == Health::RollBack {
            return Err(TrainingError::Diverged(format!(
                "the loss or its gradient was not finite in {} updates in a row; lower policy.learning_rate or critics.learning_rate",
                self.config.guards.non_finite_limit
            )));
        }
        let constraints = self.config.constraints.keys().map(String::as_str);
        let mut metrics = report::metrics(&experience, &totals, constraints, (&before, self.guards.counts()));
        metrics.kl_coefficient = self.kl_coefficient.value();
        metrics.reference_kl_target = self.config.shaping.reference_kl.as_ref().map(|section| section.target);
        if let Some(reference_kl) = &self.config.shaping.reference_kl {
            self.kl_coefficient.step(reference_kl, experience.reference_kl());
        }
        metrics.phases = self.stopwatch.seconds();
        Ok(metrics)
    }

    fn learning_rate(&self) -> f64 {
        let section = &self.config.policy;
        section.learning_rate
            * learning_rate_factor(section.decay, section.warmup_ratio, self.version.0, self.config.ppo.updates)
    }

    /// For each worker its share of some of the rows, grouped into micro-batches.
    fn shares(&self, rollouts: &[ScoredRollout], rows: &[usize]) -> Vec<Vec<Vec<usize>>> {
        let tokens = |row: &usize| rollouts[*row].rollout.prompt.tokens.len() + rollouts[*row].rollout.tokens.len();
        let lengths = |rows: &[usize]| rows.iter().map(tokens).collect::<Vec<_>>();
        let pick =
            |rows: &[usize], indices: Vec<usize>| indices.into_iter().map(|index| rows[index]).collect::<Vec<_>>();
        let shares = shares(&lengths(rows), self.workers.len()).into_iter().map(|share| pick(rows, share));
        let grouped = |share: Vec<usize>| {
            let groups = micro_batches(&lengths(&share), self.config.ppo.micro_batch_tokens);
            groups.into_iter().map(|group| pick(&share, group)).collect()
        };
        shares.map(grouped).collect()
    }
}

#[cfg(test)]
mod tests;
