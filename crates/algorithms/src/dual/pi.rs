//! Proportional-integral control of log λ: the default.
//!
//! With `floor` = 1 it is log(1 + λ) that moves, and 1 / (1 + λ) is the weight of the reward in the policy's objective: a
//! step is about as strong wherever λ is, and λ near zero answers an excess at once. The proportional part is what keeps
//! policy and multiplier from circling around the saddle: the sum of its steps is α_P · e, so that the policy climbs an augmented
//! Lagrangian, whose penalty α_P/2 · e² has its optimum at the limit where the linear one only has a cliff. What was tried
//! instead: `docs/limit.md`.

use super::config::require_not_negative;
use crate::real::within;
use saddle_core::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `log(λ + floor) += clip(α_I e + α_P e + α_V max(ē, 0) − p)` within ± `step_limit`, where ē is the excess without a margin, smoothed,
/// α_I shrinks with the delay, and p is what earlier steps made of the proportional parts: those of the step before, unless
/// the limit cut one short, whose rest then follows. p begins at 0, so that a policy that begins over its limit meets a
/// large λ at once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PiConfig {
    /// α_0, step of log(λ + floor) for one unit of excess cost, at delay 0. Default 0.02.
    pub integral_gain: f64,
    /// α_P, share of log(λ + floor) for one unit of excess; damps the loop. Default 0.3.
    pub proportional_gain: f64,
    /// α_V, further share of log(λ + floor) for one unit of a violation that lasts: of the excess smoothed over some five updates,
    /// where it is above 0. Noise hardly reaches it. Default 1.
    pub violation_gain: f64,
    /// Largest step of log(λ + floor) in one update. Default 0.3.
    pub step_limit: f64,
    /// What λ is offset by under the logarithm. Far below it, λ moves linearly: it reaches zero, and leaves it as fast. Far
    /// above, its relative change is what is bounded. Default 1.
    pub floor: f64,
    /// No step while |e| is below this many standard errors of the estimate. Default 0: the noise evens out, a drift does not.
    pub dead_zone_standard_errors: f64,
    /// Whether the integral gain is α_0 / (1 + τ), τ the measured delay in policy versions: a delayed integral loop
    /// overshoots above τ^τ/(τ+1)^(τ+1). Default true.
    pub scale_gain_with_delay: bool,
}

impl Default for PiConfig {
    fn default() -> Self {
        Self {
            integral_gain: 0.02,
            proportional_gain: 0.3,
            violation_gain: 1.0,
            step_limit: 0.3,
            floor: 1.0,
            dead_zone_standard_errors: 0.0,
            scale_gain_with_delay: true,
        }
    }
}

impl PiConfig {
    pub(super) fn validate(&self) -> Problems {
        let mut problems = Problems::default();
        require_not_negative(&mut problems, "integral_gain", self.integral_gain);
        require_not_negative(&mut problems, "proportional_gain", self.proportional_gain);
        require_not_negative(&mut problems, "violation_gain", self.violation_gain);
        require_not_negative(&mut problems, "dead_zone_standard_errors", self.dead_zone_standard_errors);
        for (key, value) in [("step_limit", self.step_limit), ("floor", self.floor)] {
            problems.require(value.is_finite() && value > 0.0, key, format!("must be finite and above 0, is {value}"));
        }
        problems
    }
}

/// Share of ē that an update keeps.
const SMOOTHING: f64 = 0.8;

/// What the controller remembers. The integral is λ itself, which the caller bounds: there is nothing to wind up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PiLaw {
    /// p, the share of log(λ + floor) that is of the proportional parts.
    proportional: f64,
    /// ē.
    smoothed: f64,
}

impl PiLaw {
    /// The next λ before its bounds are applied, for an `excess` with the estimator's margin and a `violation` without it; `None` inside the dead zone, where nothing is remembered either, so
    /// that a slow drift is answered in full once it leaves the zone.
    pub fn advance(
        &mut self,
        config: &PiConfig,
        multiplier: f64,
        excess: f64,
        (violation, standard_error): (f64, f64),
        delay_versions: f64,
    ) -> Option<f64> {
        if excess.abs() < config.dead_zone_standard_errors * standard_error {
            return None;
        }
        let slowing = if config.scale_gain_with_delay { 1.0 + delay_versions } else { 1.0 };
        let integral = within(config.integral_gain / slowing * excess, config.step_limit);
        self.smoothed += (1.0 - SMOOTHING) * (violation - self.smoothed);
        let proportional = config.proportional_gain * excess + config.violation_gain * self.smoothed.max(0.0);
        let step = within(integral + proportional - self.proportional, config.step_limit);
        self.proportional += step - integral;
        Some(((multiplier + config.floor).ln() + step).exp() - config.floor)
    }
}
