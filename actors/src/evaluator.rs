//! The evaluator: examines published weights on prompts that are not trained on, beside the training.
//!
//! The learner hands it every version that is due. It is one stage, and versions wait for it in order: a learner that is
//! further ahead than the edge is long waits too, so that no version that is due is passed over. Nothing else waits for it: what
//! it finds goes to whoever gave the engine, and training goes on meanwhile.

use crate::engine::Engines;
use crate::shared::{Next, Run, StageError, Work};
use crate::work::Published;
use saddle_flow::{FlowError, Receiver, Stage};
use std::sync::Arc;

pub(crate) struct Evaluator<E: Engines> {
    pub(crate) run: Arc<Run<E>>,
    pub(crate) input: Receiver<Published<E::Weights>>,
}

impl<E: Engines> Work for Evaluator<E> {
    fn step(&mut self, stage: &Stage) -> Result<Next, StageError> {
        match self.input.recv(stage) {
            Ok(Some(Published(weights))) => {
                self.run.engines.evaluate(weights.version, &weights.value)?;
                Ok(Next::Continue)
            }
            Ok(None) => Ok(Next::Done),
            // Between two versions that are due may lie any time.
            Err(FlowError::Deadline { .. }) => Ok(Next::Continue),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Harness;
    use saddle_core::PolicyVersion;

    #[test]
    fn versions_are_examined_in_order_and_a_long_wait_between_them_is_no_failure() {
        let harness = Harness::new(|plan| plan.evaluate_every_updates = 1);
        let (weights, input) = harness.edge();
        let mut evaluator = Evaluator { run: Arc::clone(&harness.run), input };
        let stage = harness.stage();
        for version in [1, 2] {
            harness.run.weights.publish(PolicyVersion(version), ()).unwrap();
            weights.send(Published(harness.run.weights.newest()), &stage).unwrap();
        }
        (0..3).for_each(|_| assert_eq!(evaluator.step(&stage).unwrap(), Next::Continue));
        assert_eq!(harness.run.engines.evaluated(), [PolicyVersion(1), PolicyVersion(2)]);
        weights.close();
        assert_eq!(evaluator.step(&stage).unwrap(), Next::Done);
    }
}
