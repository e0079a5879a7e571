//! `[[disturbances]]`: an experiment's knob. Something is changed under a run on purpose, to see how it is answered.

use saddle_core::Problems;
use saddle_data::Source;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[[disturbances]]`: what is changed before an update, to see how the multipliers answer it. For experiments only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Disturbance {
    /// The update that it comes before; the first is 1.
    pub at_update: u64,
    /// Every λ is set to this.
    pub multiplier: Option<f64>,
    /// This is added to every cost limit.
    pub cost_limit_change: Option<f64>,
    /// Every λ is held for so many updates.
    pub hold_updates: u64,
    /// Prompts are drawn from these instead. In the asynchronous schedule those that are drawn by then stay.
    pub prompts: Vec<Source>,
}

impl Disturbance {
    /// Everything that is wrong with the values, in a run of `updates` updates.
    #[must_use]
    pub fn validate(&self, updates: u64) -> Problems {
        let mut problems = Problems::default();
        let at = self.at_update;
        problems.require((1..=updates).contains(&at), "at_update", format!("must be in 1..={updates}, is {at}"));
        let multiplier = self.multiplier.unwrap_or(0.0);
        let sound = multiplier.is_finite() && multiplier >= 0.0;
        problems.require(sound, "multiplier", format!("must be 0 or more, is {multiplier}"));
        let change = self.cost_limit_change.unwrap_or(0.0);
        problems.require(change.is_finite(), "cost_limit_change", format!("must be finite, is {change}"));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_value_is_named() {
        assert!(Disturbance { at_update: 9, ..Disturbance::default() }.validate(9).is_empty());
        let wrong = Disturbance {
            at_update: 10,
            multiplier: Some(-1.0),
            cost_limit_change: Some(f64::NAN),
            ..Disturbance::default()
        };
        let keys: Vec<String> = wrong.validate(9).iter().map(|problem| problem.key.clone()).collect();
        assert_eq!(keys, ["at_update", "multiplier", "cost_limit_change"]);
    }
}
