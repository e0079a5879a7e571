//! How a stage tells of its progress.

use saddle_core::ScoredRollout;

/// Whoever watches a stage: a metrics log, a progress display, a test.
pub trait Observer {
    /// Step `step` of `steps` is done; the first is 1.
    fn step(&mut self, step: u64, steps: u64, metrics: &[(String, f64)]);

    /// Rollouts that have just been scored. What this returns is added to the metrics of the update that comes next.
    fn rollouts(&mut self, rollouts: &[ScoredRollout]) -> Vec<(String, f64)> {
        let _ = rollouts;
        Vec::new()
    }

    /// Who waits for whom, in a few words, with the step that comes next.
    fn waits(&mut self, text: &str) {
        let _ = text;
    }

    /// Something worth a line: rows left out, rollouts not trained on.
    fn note(&mut self, message: &str);
}
