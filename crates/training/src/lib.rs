//! What the compute stages do: supervised and preference training, generation, scoring, and the policy update.
//!
//! Everything here is told what to do next, and has done it when it returns; who runs it, on which thread, and what flows
//! between stages is decided above. It joins the models of `saddle-lm` to the mathematics of `saddle-algorithms`.

pub mod config;
mod critics;
mod direct_preference;
mod dual;
mod encode;
mod error;
mod fitting;
mod grid;
mod held_out;
mod judges;
mod learner;
mod memory;
mod metrics;
mod models;
mod observer;
mod preference;
mod ptx;
mod scoring;
mod statistics;
mod supervised;
mod synchronous;
mod training_scores;
mod watch;
mod workers;

pub use critics::CriticSet;
pub use direct_preference::train_directly;
pub use dual::{Dual, DualStep};
pub use encode::{Encoded, Pair, Sequence, encode_pair, encode_preferences, encode_prompt, encode_supervised};
pub use error::TrainingError;
pub use judges::Judges;
pub use learner::Learner;
pub use memory::{MemoryPlan, RunShapes};
pub use metrics::{
    BatchMetrics, CostMetrics, GuardMetrics, ImportanceMetrics, KlMetrics, Named, PhaseSeconds, Stream, StreamMetrics,
    UpdateMetrics,
};
pub use models::{PolicyModel, Scorer, Start, normalised};
pub use observer::Observer;
pub use preference::{TrainedScorer, train_scorer};
pub use ptx::Ptx;
pub use scoring::{end_scores, reference_log_probs, score_rollouts, token_log_probs};
pub use supervised::train_supervised;
pub use synchronous::{decode_settings, train_synchronously};
pub use watch::{Alarm, CostFigure, LimitWatch, Turn, Verdict};
