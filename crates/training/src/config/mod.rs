//! Configurations of the stages: what a TOML recipe may say. One struct a stage, one a section.
//!
//! Every key has a default or is required; [`Validate::problems`] lists all that is wrong at once.

mod alarms;
mod asynchronous;
mod correction;
mod disturbance;
mod evaluation;
mod policy_training;
mod ppo;
mod sections;
mod supervised;

pub use alarms::AlarmsSection;
pub use asynchronous::{
    EdgesSection, PlacementSection, ScheduleKind, ScheduleSection, StagePlacement, SupervisionSection,
    TelemetrySection, WeightsTaking, seconds,
};
pub use correction::{CorrectionKind, CorrectionSection, LambdaVtraceConfig, RejectionSection, TargetsConfig};
pub use disturbance::Disturbance;
pub use evaluation::EvaluationSection;
pub use policy_training::{
    ConstraintSection, Critics, CriticsSection, GenerationSection, PolicySection, PrecisionSection, PromptsSection,
    ScorerSection, TrainConfig,
};
pub use ppo::{AdvantageNormalization, PpoSection};
pub use sections::{
    DataSection, Device, ModelSection, OptimizerSection, RunSection, ShapeSection, SpecialTokens, TokenizerSection,
};
pub use supervised::{
    DpoConfig, DpoSection, PreferenceConfig, PreferenceLossKind, PreferenceSection, SftConfig, StartSection,
};

use saddle_core::Problems;

/// A configuration that can say what is wrong with it.
pub trait Validate {
    /// Every problem, with its key; empty if there is none.
    fn problems(&self) -> Problems;
}
