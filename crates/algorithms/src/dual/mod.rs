//! The Lagrange multiplier of one constraint: a cost estimate, and a controller that moves λ by it.
//!
//! Costs enter a [`CostEstimator`] when they are scored, for every finished response, before any filter (DUAL-3): what
//! survives stale-drops and rejections is biased low. Once for each policy version the [`Controller`] takes the estimate,
//! or its absence, and makes at most one step. It keeps 0 ≤ λ ≤ λ_max (DUAL-1), and a cost that is missing or not finite
//! never moves it (DUAL-2): it holds, and counts the hold by cause.
//!
//! Both are plain state machines. The controller's state is [`ControllerState`], which round-trips through serde; the
//! estimator is serialisable whole.

mod config;
mod controller;
mod estimator;
mod linear;
mod log_sgd;
mod pi;
mod pid;

pub use config::{ConstraintConfig, ControllerConfig, EstimatorConfig};
pub use controller::{Controller, ControllerState, HoldCause, Holds, Law, Step};
pub use estimator::{
    CostEstimate, CostEstimator, CostSample, FreshConfig, LIMIT_STANDARD_ERRORS, Unattainable, UpperConfig,
    WindowConfig,
};
pub use linear::{LinearConfig, LinearLaw, LinearOptimizer};
pub use log_sgd::{LogSgdConfig, LogSgdLaw};
pub use pi::{PiConfig, PiLaw};
pub use pid::{PidConfig, PidLaw};
