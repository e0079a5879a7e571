//! How a stage tells of its progress.

use crate::dual::DualStep;
use crate::metrics::UpdateMetrics;
use saddle_core::{PolicyVersion, ScoredRollout};
use saddle_lm::Policy;

/// Whoever watches a stage: a metrics log, a progress display, a test.
pub trait Observer {
    /// Step `step` of `steps` is done; the first is 1.
    fn step(&mut self, step: u64, steps: u64, metrics: &[(String, f64)]);

    /// Rollouts that have just been scored. What this returns is added to the metrics of the update that comes next.
    fn rollouts(&mut self, rollouts: &[ScoredRollout]) -> Vec<(String, f64)> {
        let _ = rollouts;
        Vec::new()
    }

    /// The update numbered `update` was made, after these steps of the constraints. Its numbers by name come with the step.
    fn updated(&mut self, update: u64, steps: &[DualStep], metrics: &UpdateMetrics) {
        let _ = (update, steps, metrics);
    }

    /// The policy as it is after its update to `version`, in the synchronous schedule.
    fn published(&mut self, version: PolicyVersion, policy: &Policy) {
        let _ = (version, policy);
    }

    /// Who waits for whom, in a few words, with the step that comes next.
    fn waits(&mut self, text: &str) {
        let _ = text;
    }

    /// Something worth a line: rows left out, rollouts not trained on.
    fn note(&mut self, message: &str);

    /// Whether the stage is to end now, after the step that it has made. Asked between steps; a stage that is told so makes none
    /// after it, and keeps what it has learnt.
    fn is_told_to_leave(&mut self) -> bool {
        false
    }
}
