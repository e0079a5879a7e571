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
