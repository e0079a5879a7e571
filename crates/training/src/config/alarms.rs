//! `[alarms]`: when the person who runs a training is told.

use super::Validate;
use saddle_algorithms::shaping::ShapingConfig;
use saddle_core::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The divergence that is told of where there is neither a bound nor a target, in nats a response.
const REFERENCE_KL_BOUND: f64 = 20.0;

/// `[alarms]`: when the person who runs a training is told, beside limits that are broken. An alarm changes nothing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AlarmsSection {
    /// Divergence from the reference, in nats a response, above which it is told of. Default: twice
    /// `shaping.reference_kl.target`, or 20 without one.
    pub reference_kl: Option<f64>,
    /// Share of the first update's entropy below which the policy has collapsed, in 0..1.
    pub entropy_ratio: f64,
    /// Share of a batch's scores outside the range that their model was trained on, above which it is told of, in 0..=1.
    pub score_range_ratio: f64,
}

impl Default for AlarmsSection {
    fn default() -> Self {
        Self { reference_kl: None, entropy_ratio: 0.15, score_range_ratio: 0.1 }
    }
}

impl AlarmsSection {
    /// The divergence above which it is told of, in nats a response.
    #[must_use]
    pub fn reference_kl_bound(&self, shaping: &ShapingConfig) -> f64 {
        let by_target = shaping.reference_kl.map_or(REFERENCE_KL_BOUND, |reference_kl| 2.0 * reference_kl.target);
        self.reference_kl.unwrap_or(by_target)
    }
}

impl Validate for AlarmsSection {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        let bound = self.reference_kl.unwrap_or(1.0);
        problems.require(bound > 0.0, "reference_kl", format!("must be above 0, is {bound}"));
        let entropy = self.entropy_ratio;
        problems.require((0.0..1.0).contains(&entropy), "entropy_ratio", format!("must be in 0..1, is {entropy}"));
        let range = self.score_range_ratio;
        problems.require((0.0..=1.0).contains(&range), "score_range_ratio", format!("must be in 0..=1, is {range}"));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use saddle_algorithms::divergence::ReferenceKlConfig;

    #[test]
    fn the_divergence_that_is_told_of_follows_the_target_unless_it_is_given() {
        let (section, free) = (AlarmsSection::default(), ShapingConfig::default());
        let held =
            ShapingConfig { reference_kl: Some(ReferenceKlConfig { target: 4.0, ..Default::default() }), ..free };
        assert_eq!((section.reference_kl_bound(&free), section.reference_kl_bound(&held)), (20.0, 8.0));
        let given = AlarmsSection { reference_kl: Some(3.0), ..section };
        assert_eq!(given.reference_kl_bound(&held), 3.0);
    }

    #[test]
    fn the_defaults_are_valid_and_every_wrong_value_is_named() {
        assert!(AlarmsSection::default().problems().is_empty());
        let wrong = AlarmsSection { reference_kl: Some(0.0), entropy_ratio: 1.0, score_range_ratio: f64::NAN };
        let keys: Vec<String> = wrong.problems().iter().map(|problem| problem.key.clone()).collect();
        assert_eq!(keys, ["reference_kl", "entropy_ratio", "score_range_ratio"]);
    }
}
