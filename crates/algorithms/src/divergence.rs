//! β that follows the divergence from the reference: a target instead of a weight.
//!
//! With a fixed β, a policy goes on from the reference for as long as that pays: over a long run its entropy falls away, and
//! then a small change of λ moves it from all safe to a quarter unsafe, with nothing between. A target for the
//! divergence bounds how far that goes. β is then what keeps to it, as λ is what keeps to the cost limit (Ziegler et al.
//! 2019, arXiv 1909.08593, section 2.2, in steps of log β).

use crate::real::within;
use saddle_core::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `log β += gain · clip(KL / target − 1, ±1)`, one step an update, within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReferenceKlConfig {
    /// KL(π ‖ π_ref) of a response that β is moved to hold, in nats. Default 6.
    pub target: f64,
    /// Largest step of log β in one update. Default 0.05.
    pub gain: f64,
    /// β is never below this. Default 0.001.
    pub minimum_coefficient: f64,
    /// β is never above this. Default 1.
    pub maximum_coefficient: f64,
}

impl Default for ReferenceKlConfig {
    fn default() -> Self {
        Self { target: 6.0, gain: 0.05, minimum_coefficient: 1e-3, maximum_coefficient: 1.0 }
    }
}

impl ReferenceKlConfig {
    /// Everything that is wrong with the values, for a run that begins with β at `initial`.
    #[must_use]
    pub fn validate(&self, initial: f64) -> Problems {
        let Self { target, gain, minimum_coefficient: minimum, maximum_coefficient: maximum } = *self;
        let mut problems = Problems::default();
        for (key, value) in [("target", target), ("minimum_coefficient", minimum), ("maximum_coefficient", maximum)] {
            problems.require(value.is_finite() && value > 0.0, key, format!("must be finite and above 0, is {value}"));
        }
        problems.require(gain > 0.0 && gain <= 1.0, "gain", format!("must be above 0 and at most 1, is {gain}"));
        let message =
            format!("must hold shaping.kl_coefficient = {initial}, which β begins at: is {minimum}..={maximum}");
        problems.require((minimum..=maximum).contains(&initial), "minimum_coefficient", message);
        problems
    }
}

/// β of one learner.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KlCoefficient {
    value: f64,
}

impl KlCoefficient {
    /// β at its initial value.
    #[must_use]
    pub fn new(initial: f64) -> Self {
        Self { value: initial }
    }

    /// β.
    #[must_use]
    pub fn value(self) -> f64 {
        self.value
    }

    /// One step by the mean divergence `reference_kl` of a batch, in nats a response. One that is not finite moves nothing.
    pub fn step(&mut self, config: &ReferenceKlConfig, reference_kl: f64) {
        let excess = reference_kl / config.target - 1.0;
        if excess.is_finite() {
            let step = config.gain * within(excess, 1.0);
            self.value = (self.value * step.exp()).clamp(config.minimum_coefficient, config.maximum_coefficient);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn beta_rises_above_the_target_falls_below_it_and_rests_on_it() {
        let config = ReferenceKlConfig { target: 4.0, gain: 0.1, ..ReferenceKlConfig::default() };
        let after = |reference_kl| {
            let mut beta = KlCoefficient::new(0.1);
            beta.step(&config, reference_kl);
            beta.value()
        };
        assert_eq!(after(4.0), 0.1);
        assert!((after(6.0) - 0.1 * 0.05f64.exp()).abs() < 1e-15);
        assert!((after(400.0) - 0.1 * 0.1f64.exp()).abs() < 1e-15, "steps are bounded");
        assert!((after(2.0) - 0.1 * (-0.05f64).exp()).abs() < 1e-15);
        assert_eq!(after(f64::NAN), 0.1);
    }

    #[test]
    fn every_wrong_value_is_named() {
        assert!(ReferenceKlConfig::default().validate(0.1).is_empty());
        let wrong = ReferenceKlConfig {
            target: 0.0,
            gain: f64::NAN,
            minimum_coefficient: 0.5,
            maximum_coefficient: f64::INFINITY,
        };
        let keys: Vec<String> = wrong.validate(0.1).iter().map(|problem| problem.key.clone()).collect();
        assert_eq!(keys, ["target", "maximum_coefficient", "gain", "minimum_coefficient"]);
    }

    proptest! {
        #[test]
        fn beta_stays_within_its_bounds(divergences in prop::collection::vec(-10.0..1e6f64, 1..200)) {
            let config = ReferenceKlConfig { gain: 1.0, ..ReferenceKlConfig::default() };
            let mut beta = KlCoefficient::new(0.1);
            for divergence in divergences {
                beta.step(&config, divergence);
                prop_assert!((config.minimum_coefficient..=config.maximum_coefficient).contains(&beta.value()));
            }
        }
    }
}
