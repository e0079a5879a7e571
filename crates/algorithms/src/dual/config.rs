//! What a run configuration says about one constraint.

use super::{FreshConfig, LinearConfig, LogSgdConfig, PiConfig, PidConfig, UpperConfig, WindowConfig};
use saddle_core::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One constraint: what its cost may be, and how its multiplier is moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConstraintConfig {
    /// d, the mean cost that is allowed, in cost-model units (0 is the boundary of unsafe). Default 0.
    pub cost_limit: f64,
    /// λ at the start. Default 1.
    pub initial_multiplier: f64,
    /// λ_max, which λ never exceeds. Default 5.
    pub maximum_multiplier: f64,
    /// How λ follows the cost. Default `pi`.
    pub controller: ControllerConfig,
    /// How the cost is estimated. Default `upper`.
    pub estimator: EstimatorConfig,
}

impl Default for ConstraintConfig {
    fn default() -> Self {
        Self {
            cost_limit: 0.0,
            initial_multiplier: 1.0,
            maximum_multiplier: 5.0,
            controller: ControllerConfig::default(),
            estimator: EstimatorConfig::default(),
        }
    }
}

/// How λ follows the excess e = estimated cost − cost limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ControllerConfig {
    /// Proportional-integral steps of bounded size in log λ, slower when the cost arrives late.
    Pi(PiConfig),
    /// PID with anti-windup in λ itself (Stooke et al. 2020).
    Pid(PidConfig),
    /// Projected gradient ascent on λ itself.
    Linear(LinearConfig),
    /// The published rule, `log λ += lr · λ · e`. Overflows without its cap and sticks near zero: for comparison. The
    /// published run has it on the `window` estimator.
    LogSgd(LogSgdConfig),
    /// λ stays at its initial value.
    Fixed,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self::Pi(PiConfig::default())
    }
}

/// How the mean cost of the current policy is estimated from scored responses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EstimatorConfig {
    /// Weighted mean of the costs scored under the newest policy versions.
    Fresh(FreshConfig),
    /// `fresh`, with λ moved as if the mean were a number of standard errors higher: a margin under the limit. Without one,
    /// half of the batches are over a limit that is met with equality.
    Upper(UpperConfig),
    /// Plain mean of the newest costs, whatever their version (the published rule).
    Window(WindowConfig),
}

impl Default for EstimatorConfig {
    fn default() -> Self {
        Self::Upper(UpperConfig::default())
    }
}

impl ConstraintConfig {
    /// Everything that is wrong with the values.
    #[must_use]
    pub fn validate(&self) -> Problems {
        let Self { cost_limit, initial_multiplier: initial, maximum_multiplier: maximum, .. } = *self;
        let mut problems = Problems::default();
        problems.require(cost_limit.is_finite(), "cost_limit", format!("must be finite, is {cost_limit}"));
        let bounded = maximum.is_finite() && maximum > 0.0;
        problems.require(bounded, "maximum_multiplier", format!("must be finite and above 0, is {maximum}"));
        let inside = (0.0..=maximum).contains(&initial);
        problems.require(
            inside,
            "initial_multiplier",
            format!("must be in 0..=maximum_multiplier ({maximum}), is {initial}"),
        );
        if matches!(self.controller, ControllerConfig::LogSgd(_)) {
            let message = "must be above 0 with log_sgd, which moves log λ";
            problems.require(initial > 0.0, "initial_multiplier", message);
        }
        problems.section(
            "controller",
            match &self.controller {
                ControllerConfig::Pi(pi) => pi.validate(),
                ControllerConfig::Pid(pid) => pid.validate(),
                ControllerConfig::Linear(linear) => linear.validate(),
                ControllerConfig::LogSgd(log_sgd) => log_sgd.validate(),
                ControllerConfig::Fixed => Problems::default(),
            },
        );
        problems.section(
            "estimator",
            match &self.estimator {
                EstimatorConfig::Fresh(fresh) => fresh.validate(),
                EstimatorConfig::Upper(upper) => upper.validate(),
                EstimatorConfig::Window(window) => window.validate(),
            },
        );
        problems
    }
}

/// Notes `key` unless its value is finite and 0 or more.
pub(super) fn require_not_negative(problems: &mut Problems, key: &str, value: f64) {
    problems.require(value.is_finite() && value >= 0.0, key, format!("must be finite and 0 or more, is {value}"));
}
