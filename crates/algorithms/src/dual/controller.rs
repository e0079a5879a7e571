//! The shell round every control law: bounds, holds, and state that can be saved.

use super::{ConstraintConfig, ControllerConfig, CostEstimate, LinearLaw, LogSgdLaw, PiLaw, PidLaw};
use crate::Error;
use serde::{Deserialize, Serialize};

/// Moves one constraint's λ, at most once for each policy version.
#[derive(Clone, Debug)]
pub struct Controller {
    config: ConstraintConfig,
    state: ControllerState,
}

/// All that a controller remembers; what a checkpoint stores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControllerState {
    /// λ.
    pub multiplier: f64,
    /// The control law's own memory.
    pub law: Law,
    /// Updates in which λ was held.
    pub holds: Holds,
}

/// A control law's memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Law {
    /// Of `pi`.
    Pi(PiLaw),
    /// Of `pid`.
    Pid(PidLaw),
    /// Of `linear`.
    Linear(LinearLaw),
    /// Of `log_sgd`.
    LogSgd(LogSgdLaw),
    /// Of `fixed`, which has none.
    Fixed,
}

/// Why λ was held in an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldCause {
    /// There was no cost estimate.
    NoEstimate,
    /// The estimate, or the step that it asked for, was not finite.
    NonFinite,
    /// The excess is within the noise of its estimate.
    DeadZone,
    /// The start-up delay lasts.
    StartUp,
}

impl HoldCause {
    /// Every cause.
    pub const ALL: [Self; 4] = [Self::NoEstimate, Self::NonFinite, Self::DeadZone, Self::StartUp];

    /// Its name, as in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NoEstimate => "no_estimate",
            Self::NonFinite => "non_finite",
            Self::DeadZone => "dead_zone",
            Self::StartUp => "start_up",
        }
    }
}

/// How often λ was held, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    /// For want of an estimate.
    pub no_estimate: u64,
    /// For a number that was not finite.
    pub non_finite: u64,
    /// For an excess within its noise.
    pub dead_zone: u64,
    /// For the start-up delay.
    pub start_up: u64,
}

/// What one update did to λ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// λ was computed anew (and may have stayed, at a bound).
    Moved {
        /// λ before.
        from: f64,
        /// λ now.
        to: f64,
    },
    /// λ stayed.
    Held(HoldCause),
}

impl Controller {
    /// A controller at its initial multiplier. `config` is valid.
    #[must_use]
    pub fn new(config: &ConstraintConfig) -> Self {
        let initial = config.initial_multiplier;
        let law = match config.controller {
            ControllerConfig::Pi(_) => Law::Pi(PiLaw::default()),
            ControllerConfig::Pid(_) => Law::Pid(PidLaw::new(initial)),
            ControllerConfig::Linear(_) => Law::Linear(LinearLaw::default()),
            ControllerConfig::LogSgd(_) => Law::LogSgd(LogSgdLaw::new(initial)),
            ControllerConfig::Fixed => Law::Fixed,
        };
        Self { config: config.clone(), state: ControllerState { multiplier: initial, law, holds: Holds::default() } }
    }

    /// Goes on from a saved state. Fails if it is of another kind of controller. λ is brought inside bounds that may have
    /// become tighter since.
    pub fn restore(config: &ConstraintConfig, mut state: ControllerState) -> Result<Self, Error> {
        let mut restored = Self::new(config);
        let (saved, configured) = (state.law.kind(), restored.state.law.kind());
        if saved != configured {
            return Err(Error::OtherController { saved, configured });
        }
        if !state.multiplier.is_finite() {
            return Err(Error::Value { what: "the saved λ", value: state.multiplier, needed: "finite" });
        }
        state.multiplier = restored.bounded(state.multiplier);
        restored.state = state;
        Ok(restored)
    }

    /// λ, in 0..=λ_max.
    #[must_use]
    pub fn multiplier(&self) -> f64 {
        self.state.multiplier
    }

    /// Begins anew from this λ, brought inside the bounds; holds stay counted.
    pub fn set_multiplier(&mut self, multiplier: f64) {
        let initial_multiplier = self.bounded(multiplier);
        let holds = self.state.holds;
        self.state = Self::new(&ConstraintConfig { initial_multiplier, ..self.config.clone() }).state;
        self.state.holds = holds;
    }

    /// Keeps to another limit from the next step on.
    pub fn set_cost_limit(&mut self, cost_limit: f64) {
        self.config.cost_limit = cost_limit;
    }

    /// What a checkpoint stores.
    #[must_use]
    pub fn state(&self) -> &ControllerState {
        &self.state
    }

    /// One update. `delay_versions` is the measured age of the costs behind the estimate, in policy versions; a negative
    /// or undefined delay counts as 0.
    pub fn step(&mut self, estimate: Option<CostEstimate>, delay_versions: f64) -> Step {
        let from = self.state.multiplier;
        let mut law = self.state.law.clone();
        let outcome = match estimate {
            None => Err(HoldCause::NoEstimate),
            Some(estimate) if !estimate.is_finite() => Err(HoldCause::NonFinite),
            Some(estimate) => self.advance(&mut law, estimate, delay_versions.max(0.0)),
        };
        match outcome {
            Ok(to) if to.is_finite() => {
                let to = self.bounded(to);
                self.state.multiplier = to;
                self.state.law = law;
                Step::Moved { from, to }
            }
            Ok(_) => self.hold(HoldCause::NonFinite),
            Err(cause) => {
                self.state.law = law;
                self.hold(cause)
            }
        }
    }

    /// The next λ before bounds, by the configured law.
    fn advance(&self, law: &mut Law, estimate: CostEstimate, delay_versions: f64) -> Result<f64, HoldCause> {
        let ConstraintConfig { cost_limit, maximum_multiplier, .. } = self.config;
        let multiplier = self.state.multiplier;
        let cost = estimate.mean + estimate.margin;
        let excess = cost - cost_limit;
        match (law, &self.config.controller) {
            (Law::Pi(law), ControllerConfig::Pi(config)) => law
                .advance(
                    config,
                    multiplier,
                    excess,
                    (estimate.mean - cost_limit, estimate.standard_error),
                    delay_versions,
                )
                .ok_or(HoldCause::DeadZone),
            (Law::Pid(law), ControllerConfig::Pid(config)) => {
                Ok(law.advance(config, cost, cost_limit, maximum_multiplier))
            }
            (Law::Linear(law), ControllerConfig::Linear(config)) => Ok(law.advance(config, multiplier, excess)),
            (Law::LogSgd(law), ControllerConfig::LogSgd(config)) => {
                law.advance(config, excess, maximum_multiplier).ok_or(HoldCause::StartUp)
            }
            _ => Ok(multiplier),
        }
    }

    /// DUAL-1.
    fn bounded(&self, multiplier: f64) -> f64 {
        multiplier.min(self.config.maximum_multiplier).max(0.0)
    }

    fn hold(&mut self, cause: HoldCause) -> Step {
        let holds = &mut self.state.holds;
        *match cause {
            HoldCause::NoEstimate => &mut holds.no_estimate,
            HoldCause::NonFinite => &mut holds.non_finite,
            HoldCause::DeadZone => &mut holds.dead_zone,
            HoldCause::StartUp => &mut holds.start_up,
        } += 1;
        Step::Held(cause)
    }
}

impl Law {
    fn kind(&self) -> &'static str {
        match self {
            Self::Pi(_) => "pi",
            Self::Pid(_) => "pid",
            Self::Linear(_) => "linear",
            Self::LogSgd(_) => "log_sgd",
            Self::Fixed => "fixed",
        }
    }
}
