//! The λ controller: hears every cost when it is scored, and moves each multiplier once for each policy version, when the
//! learner is about to use it.
//!
//! Costs and the learner's requests come by one edge, in order: the costs of a batch are in the estimate that its update
//! reads. What it knows, and the step that is due, outlive its thread. DUAL-1 and DUAL-2 are checked at each step.

use crate::engine::Engines;
use crate::shared::{Multipliers, Next, Run, StageError, Work};
use crate::work::{CostReport, StepRequest};
use saddle_flow::invariants::{self, Invariant};
use saddle_flow::{Receiver, Stage, lock};
use saddle_training::DualStep;
use std::sync::Arc;

pub(crate) struct Multiplier<E: Engines> {
    pub(crate) run: Arc<Run<E>>,
    pub(crate) input: Receiver<CostReport>,
}

impl<E: Engines> Multiplier<E> {
    /// One step of every multiplier, or of none (DUAL-4): what fails on the way leaves them as they were.
    fn step_all(&self, request: StepRequest) -> Result<(), StageError> {
        let StepRequest { version, delay_versions } = request;
        let mut duals = lock(&self.run.duals);
        // A learner that was restarted asks again for a step that was made.
        if self.run.multipliers.version() <= version.0 {
            let mut next = duals.clone();
            let steps: Vec<DualStep> = next.iter_mut().map(|dual| dual.step(version, delay_versions)).collect();
            duals.iter().zip(&steps).for_each(|(before, step)| check(before.multiplier(), step));
            self.run.multipliers.publish(version.0 + 1, Multipliers { steps })?;
            *duals = next;
        }
        *lock(&self.run.due) = None;
        Ok(())
    }
}

fn check(before: f64, step: &DualStep) {
    let after = step.multiplier;
    invariants::check(Invariant::Dual1, invariants::lambda_within(after, step.maximum_multiplier));
    let estimate = step.estimate.map(|estimate| estimate.mean);
    invariants::check(Invariant::Dual2, invariants::lambda_moved_by_a_finite_cost(before, after, estimate));
}

impl<E: Engines> Work for Multiplier<E> {
    fn step(&mut self, stage: &Stage) -> Result<Next, StageError> {
        let due = *lock(&self.run.due);
        if let Some(request) = due {
            self.step_all(request)?;
            return Ok(Next::Continue);
        }
        match self.input.recv(stage)? {
            None => return Ok(Next::Done),
            Some(CostReport::Step(request)) => {
                *lock(&self.run.due) = Some(request);
                self.step_all(request)?;
            }
            Some(CostReport::Scored { constraint, version, costs }) => {
                if let Some(dual) = lock(&self.run.duals).get_mut(constraint) {
                    costs.into_iter().for_each(|cost| dual.observe(cost, version));
                }
            }
        }
        Ok(Next::Continue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Harness;
    use saddle_core::PolicyVersion;

    fn request(version: u64) -> StepRequest {
        StepRequest { version: PolicyVersion(version), delay_versions: 0.0 }
    }

    #[test]
    fn every_multiplier_moves_once_for_a_version_by_the_costs_before_it() {
        let harness = Harness::new(|plan| plan.constraints = vec!["harm".to_owned(), "bias".to_owned()]);
        let (reports, input) = harness.edge();
        let mut multiplier = Multiplier { run: Arc::clone(&harness.run), input };
        let stage = harness.stage();
        for constraint in [0, 1] {
            let costs = vec![1.0 - 2.0 * constraint as f32; 128];
            reports.send(CostReport::Scored { constraint, version: PolicyVersion(0), costs }, &stage).unwrap();
        }
        // A learner that was replaced asks twice.
        reports.send(CostReport::Step(request(0)), &stage).unwrap();
        reports.send(CostReport::Step(request(0)), &stage).unwrap();
        (0..4).for_each(|_| assert_eq!(multiplier.step(&stage).unwrap(), Next::Continue));
        let newest = harness.run.multipliers.newest();
        let [harm, bias] = newest.value.values()[..] else { panic!("{newest:?}") };
        assert_eq!(newest.version, 1);
        assert!(harm > 1.0 && bias < 1.0, "{harm} {bias}");
    }

    #[test]
    fn a_step_that_a_lost_multiplier_leaves_is_made_by_its_successor_without_being_asked_again() {
        let harness = Harness::new(|_| ());
        let (_reports, input) = harness.edge();
        *lock(&harness.run.due) = Some(request(0));
        let mut successor = Multiplier { run: Arc::clone(&harness.run), input };
        successor.step(&harness.stage()).unwrap();
        assert_eq!((harness.run.multipliers.version(), lock(&harness.run.due).is_none()), (1, true));
    }
}
