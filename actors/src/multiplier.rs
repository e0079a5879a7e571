//! The λ controller: hears every cost when it is scored, and moves each multiplier once for each policy version, when the
//! learner is about to use it.
//!
//! Costs and the learner's requests come by one edge, in order: the costs of a batch are in the estimate that its update
//! reads. What it knows outlives its thread. DUAL-1 and DUAL-2 are checked at each step.

use crate::engine::Engines;
use crate::shared::{Multipliers, Next, Run, StageError, Work, lock};
use crate::work::CostReport;
use saddle_flow::invariants::{self, Invariant};
use saddle_flow::{Receiver, Stage};
use saddle_training::{Dual, DualStep};
use std::sync::Arc;

pub(crate) struct Multiplier<E: Engines> {
    pub(crate) run: Arc<Run<E>>,
    pub(crate) input: Receiver<CostReport>,
}

impl<E: Engines> Work for Multiplier<E> {
    fn step(&mut self, stage: &Stage) -> Result<Next, StageError> {
        let Some(report) = self.input.recv(stage)? else { return Ok(Next::Done) };
        let mut duals = lock(&self.run.duals);
        match report {
            CostReport::Scored { constraint, version, costs } => {
                if let Some(dual) = duals.get_mut(constraint) {
                    costs.into_iter().for_each(|cost| dual.observe(cost, version));
                }
            }
            // A learner that was restarted asks again for a step that was made.
            CostReport::Step { version, .. } if self.run.multipliers.version() > version.0 => {}
            CostReport::Step { version, delay_versions } => {
                let before: Vec<f64> = duals.iter().map(Dual::multiplier).collect();
                let steps: Vec<DualStep> = duals.iter_mut().map(|dual| dual.step(version, delay_versions)).collect();
                for (step, before) in steps.iter().zip(before) {
                    let after = step.multiplier;
                    let bounded = invariants::lambda_within(after, step.maximum_multiplier);
                    invariants::check(Invariant::Dual1, bounded);
                    let estimate = step.estimate.map(|estimate| estimate.mean);
                    let moved = invariants::lambda_moved_by_a_finite_cost(before, after, estimate);
                    invariants::check(Invariant::Dual2, moved);
                }
                drop(duals);
                self.run.multipliers.publish(version.0 + 1, Multipliers { steps })?;
            }
        }
        Ok(Next::Continue)
    }
}
