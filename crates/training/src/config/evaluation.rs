//! `[evaluation]`: how the policy is examined while it is trained.

use super::Validate;
use saddle_core::{PolicyVersion, Problems};
use saddle_data::Source;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[evaluation]`: answers to prompts that are kept out of training, scored by the run's own models: while the policy is
/// trained, and once it is. The best policy that was seen to keep every limit is kept in `best/`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EvaluationSection {
    /// Updates between two evaluations; 0 means only the one at the end. One that takes longer than
    /// `supervision.heartbeat_seconds` counts as hung.
    pub every_updates: u64,
    /// Held-out prompts. Without them, `held_out_ratio` of the training prompts are kept aside.
    pub prompts: Vec<Source>,
    /// Share of the training prompts to keep aside when `prompts` is empty, in 0..1. With 0 and no `prompts` there are no
    /// evaluations, and the verdict at the end goes by the training batches alone.
    pub held_out_ratio: f64,
    /// Answers of one evaluation, to the held-out prompts in turn.
    pub responses: usize,
    /// Always take the likeliest token, instead of sampling as training does.
    pub greedy: bool,
    /// Answers of each evaluation that are kept word for word, always to the same prompts.
    pub kept_responses: usize,
}

impl Default for EvaluationSection {
    fn default() -> Self {
        Self {
            every_updates: 50,
            prompts: Vec::new(),
            held_out_ratio: 0.05,
            responses: 256,
            greedy: false,
            kept_responses: 8,
        }
    }
}

impl EvaluationSection {
    /// Whether the policy of `version` is examined while a run of `updates` updates goes on. The one at its end always is, when
    /// the run is over.
    #[must_use]
    pub fn is_due(every_updates: u64, version: PolicyVersion, updates: u64) -> bool {
        every_updates > 0 && version.0.is_multiple_of(every_updates) && version.0 < updates
    }
}

impl Validate for EvaluationSection {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        let ratio = self.held_out_ratio;
        problems.require((0.0..1.0).contains(&ratio), "held_out_ratio", format!("must be in 0..1, is {ratio}"));
        let message = format!("must be at least 16, for a confidence bound, is {}", self.responses);
        problems.require(self.responses >= 16, "responses", message);
        let message = format!("must be at most responses = {}, is {}", self.responses, self.kept_responses);
        problems.require(self.kept_responses <= self.responses, "kept_responses", message);
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_every_wrong_value_is_named() {
        assert!(EvaluationSection::default().problems().is_empty());
        let wrong = EvaluationSection { held_out_ratio: 1.0, responses: 15, kept_responses: 16, ..Default::default() };
        let keys: Vec<String> = wrong.problems().iter().map(|problem| problem.key.clone()).collect();
        assert_eq!(keys, ["held_out_ratio", "responses", "kept_responses"]);
    }
}
