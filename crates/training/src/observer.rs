//! How a stage tells of its progress.

use crate::dual::DualStep;
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

    /// What each constraint's step for the coming update `update` went by.
    fn constraints(&mut self, update: u64, steps: &[DualStep]) {
        let _ = (update, steps);
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
}

/// A metric of one constraint: its plain name where there is only one constraint, else with the constraint's name.
#[must_use]
pub fn constraint_metric(metric: &str, constraint: &str, only: bool) -> String {
    if only { metric.to_owned() } else { format!("{metric}_{constraint}") }
}
