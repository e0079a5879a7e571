//! What the learner works on, kept apart from its thread: a replacement goes on where the one before was lost.
//!
//! Publishing is the one moment at which a batch counts as learnt from. A batch that is settled and not published is still
//! pending; whoever publishes first takes it off.

use saddle_core::{PolicyVersion, ScoredRollout};
use saddle_flow::Credit;
use std::sync::Arc;

/// The learner's engine, its batch, and the credits of the batch.
pub(crate) struct PendingBatch<L> {
    /// Not here while an update runs: one that fails half-way leaves weights that nobody should go on from.
    pub(crate) engine: Option<L>,
    pub(crate) batch: Option<Arc<Settled>>,
    pub(crate) credits: Vec<Credit>,
}

/// A batch whose prompts have ended as trained.
pub(crate) struct Settled {
    /// The weights that are to learn from it.
    pub(crate) version: PolicyVersion,
    pub(crate) rollouts: Arc<Vec<ScoredRollout>>,
    /// Mean staleness, in versions.
    pub(crate) delay_versions: f64,
}

impl<L> PendingBatch<L> {
    pub(crate) fn new(engine: L) -> Self {
        Self { engine: Some(engine), batch: None, credits: Vec::new() }
    }

    fn has(&self, version: PolicyVersion) -> bool {
        self.batch.as_ref().is_some_and(|batch| batch.version == version)
    }

    /// Puts the engine back that has learnt from the batch of `version`, unless somebody else has cleared that batch away:
    /// then its weights are old.
    pub(crate) fn put_back(&mut self, engine: L, version: PolicyVersion) {
        if self.has(version) {
            self.engine = Some(engine);
        }
    }

    /// Clears away the batch of `version`, if it is still there; the credits go back with what this returns.
    #[must_use]
    pub(crate) fn clear(&mut self, version: PolicyVersion) -> Vec<Credit> {
        if !self.has(version) {
            return Vec::new();
        }
        self.batch = None;
        std::mem::take(&mut self.credits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learner_that_was_replaced_leaves_the_next_batch_and_its_engine_alone() {
        let batch = Settled { version: PolicyVersion(4), rollouts: Arc::new(Vec::new()), delay_versions: 0.0 };
        let mut pending = PendingBatch { engine: None, batch: Some(Arc::new(batch)), credits: Vec::new() };
        pending.put_back("old", PolicyVersion(3));
        drop(pending.clear(PolicyVersion(3)));
        assert!(pending.engine.is_none() && pending.batch.is_some());
        pending.put_back("new", PolicyVersion(4));
        drop(pending.clear(PolicyVersion(4)));
        assert!(pending.engine == Some("new") && pending.batch.is_none());
    }
}
