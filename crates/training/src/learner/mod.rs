//! The learner: one PPO-Lagrangian update from a batch of scored rollouts (Safe RLHF, arXiv 2310.12773, section 3.2).
//!
//! It owns the policy, the critics and their optimisers; the multipliers come from outside with every batch, so no
//! sample carries a stale λ. An update is: log-probs π_k and values under the weights as they are, how far the rollouts
//! are from them, advantages, then some passes over the batch. Where the first step's forward pass is that of π_k, it
//! is run once. [`Guards`] decide what is left out of an update, and when training is given up.

mod experience;
mod off_policy;
mod passes;
mod phases;
mod report;

use crate::TrainingError;
use crate::config::TrainConfig;
use crate::critics::CriticSet;
use crate::ptx::Ptx;
use phases::{Phase, Stopwatch};
use saddle_algorithms::guards::{Guards, Health};
use saddle_core::{PolicyVersion, ScoredRollout};
use saddle_lm::{AdamW, Policy, ResponseLogProbs, SequenceBatch, learning_rate_factor, micro_batches};
use tch::Tensor;

/// A policy in training.
#[derive(Debug)]
pub struct Learner {
    config: TrainConfig,
    policy: Policy,
    optimizer: AdamW,
    critics: CriticSet,
    ptx: Ptx,
    version: PolicyVersion,
    guards: Guards,
    /// Of the update under way.
    stopwatch: Stopwatch,
}

/// Which models a forward pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nets {
    PolicyAndCritics,
    CriticsOnly,
}

/// A forward pass of some of the rollouts.
struct Forward {
    rows: Vec<usize>,
    batch: SequenceBatch,
    /// None of a pass for the critics only.
    policy: Option<ResponseLogProbs>,
    /// One for the reward stream, then one for each cost.
    values: Vec<Tensor>,
}

impl Learner {
    /// A learner that starts from `policy`, whose weights it will change; `ptx` may be without rows.
    ///
    /// # Errors
    /// Fails if the optimiser's memory cannot be had.
    pub fn new(config: TrainConfig, policy: Policy, critics: CriticSet, ptx: Ptx) -> Result<Self, TrainingError> {
        let precision = config.precision.learning;
        let (policy, critics) = (policy.trainable()?.in_precision(precision), critics.in_precision(precision));
        let optimizer = AdamW::new(config.policy.adamw.clone(), policy.parameters())?;
        let guards = Guards::new(config.guards);
        Ok(Self {
            config,
            policy,
            optimizer,
            critics,
            ptx,
            version: PolicyVersion(0),
            guards,
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
    /// Returns what it did, as named numbers in the order to show them.
    ///
    /// # Errors
    /// [`TrainingError::Diverged`] when as many updates in a row had numbers that are not finite as the guards allow.
    pub fn update(&mut self, rollouts: &[ScoredRollout], lambdas: &[f64]) -> Result<Vec<(String, f64)>, TrainingError> {
        let before = *self.guards.counts();
        self.stopwatch = Stopwatch::start();
        let (experience, shared) = self.look(rollouts, lambdas)?;
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
        metrics.extend(self.stopwatch.metrics());
        Ok(metrics)
    }

    fn learning_rate(&self) -> f64 {
        let section = &self.config.policy;
        section.learning_rate
            * learning_rate_factor(section.decay, section.warmup_ratio, self.version.0, self.config.ppo.updates)
    }

    /// Groups some of the rows into micro-batches.
    fn micro_batches(&self, rollouts: &[ScoredRollout], rows: &[usize]) -> Vec<Vec<usize>> {
        let length = |row: &usize| rollouts[*row].rollout.prompt.tokens.len() + rollouts[*row].rollout.tokens.len();
        let groups = micro_batches(&rows.iter().map(length).collect::<Vec<_>>(), self.config.ppo.micro_batch_tokens);
        groups.into_iter().map(|group| group.into_iter().map(|index| rows[index]).collect()).collect()
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
        let batch = SequenceBatch::new(&rows.iter().map(sequence).collect::<Vec<_>>(), self.policy.device())?;
        let policy = match nets {
            Nets::PolicyAndCritics => Some(self.policy.response_log_probs(&batch, self.config.generation.temperature)?),
            Nets::CriticsOnly => None,
        };
        self.stopwatch.lap(phases[0]);
        let values = self.critics.values(&batch)?;
        self.stopwatch.lap(phases[1]);
        Ok(Forward { rows, batch, policy, values })
    }
}

#[cfg(test)]
mod tests;
