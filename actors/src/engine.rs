//! What the stages compute with, as traits: the system runs over them without knowing a model. [`model`](crate::model)
//! has the real ones, [`fake`](crate::fake) ones that only take time.
//!
//! An engine lives on the thread of its stage and need not be `Send`, but for the learner, which outlives its thread.

use crate::{Lane, Role};
use saddle_core::{PolicyVersion, Prompt, PromptOrdinal, Rollout, ScoredRollout};
use saddle_flow::Snapshot;
use saddle_training::{TrainingError, UpdateMetrics};
use std::sync::Arc;

/// Why an engine gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A new engine may do better.
    #[error("{0}")]
    Failed(String),
    /// Trying again does not help: the run ends.
    #[error("{0}")]
    Fatal(String),
}

impl From<TrainingError> for EngineError {
    fn from(error: TrainingError) -> Self {
        match error {
            TrainingError::Torch(_) => Self::Failed(error.to_string()),
            error => Self::Fatal(error.to_string()),
        }
    }
}

/// Whether the keys and values of earlier tokens are kept when the weights change under a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// As they are.
    Keep,
    /// Computed anew.
    Rebuild,
}

/// Samples responses, many at a time.
pub trait Generate<W> {
    /// How many more prompts it can take now.
    fn free(&self) -> usize;

    /// Samples with these weights from the next token on.
    ///
    /// # Errors
    /// If it cannot.
    fn load(&mut self, weights: &Snapshot<PolicyVersion, W>, cache: Cache) -> Result<(), EngineError>;

    /// Takes up `prompts`, at most [`Self::free`] of them, then samples a token for each response under way. Returns those
    /// that ended; a prompt that leaves no room for a response comes back with an empty one.
    ///
    /// # Errors
    /// If it cannot.
    fn advance(&mut self, prompts: Vec<Prompt>) -> Result<Vec<Rollout>, EngineError>;

    /// Gives up the response to a prompt.
    ///
    /// # Errors
    /// If it cannot.
    fn evict(&mut self, ordinal: PromptOrdinal) -> Result<(), EngineError>;
}

/// What a scorer says of one response.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// A score of the whole response: of the reward stream and of cost streams.
    Whole(f32),
    /// A number for each of its tokens: of the reference stream.
    Tokens(Vec<f32>),
}

/// Scores responses.
pub trait Score {
    /// One verdict for each rollout, in order.
    ///
    /// # Errors
    /// If it cannot.
    fn score(&mut self, rollouts: &[Arc<Rollout>]) -> Result<Vec<Verdict>, EngineError>;
}

/// Learns from scored rollouts.
pub trait Learn<W>: Send {
    /// Makes one update with the multipliers `lambdas`; what it did.
    ///
    /// # Errors
    /// If it cannot.
    fn update(&mut self, rollouts: &[ScoredRollout], lambdas: &[f64]) -> Result<UpdateMetrics, EngineError>;

    /// The weights as they are now, frozen.
    ///
    /// # Errors
    /// If it cannot.
    fn snapshot(&self) -> Result<W, EngineError>;
}

/// Makes the engines of a run. Each is made on the thread of its stage, again after each restart.
pub trait Engines: Send + Sync + 'static {
    /// What the learner publishes and generators take.
    type Weights: Send + Sync + 'static;
    /// Samples responses.
    type Generator: Generate<Self::Weights>;
    /// Scores them.
    type Scorer: Score;
    /// Learns from them.
    type Learner: Learn<Self::Weights> + 'static;

    /// The prompt at a place of the endless sequence.
    fn prompt(&self, ordinal: PromptOrdinal) -> Prompt;

    /// A generator without weights.
    ///
    /// # Errors
    /// If it cannot be made.
    fn generator(&self) -> Result<Self::Generator, EngineError>;

    /// A scorer of this lane.
    ///
    /// # Errors
    /// If it cannot be made.
    fn scorer(&self, lane: Lane) -> Result<Self::Scorer, EngineError>;

    /// A learner whose weights are those of `version`. Asked for at the start, and after an update that failed half-way.
    ///
    /// # Errors
    /// [`EngineError::Fatal`] if there is no way back to that version.
    fn learner(&self, version: PolicyVersion) -> Result<Self::Learner, EngineError>;

    /// Whether [`Self::learner`] can make one that takes over an update that another one is in the middle of.
    fn can_remake_learner(&self) -> bool {
        false
    }

    /// Examines the weights of `version` on prompts that are not trained on.
    ///
    /// # Errors
    /// If it cannot.
    fn evaluate(&self, version: PolicyVersion, weights: &Self::Weights) -> Result<(), EngineError> {
        let _ = (version, weights);
        Ok(())
    }

    /// Memory of published weights, in bytes.
    fn size_bytes(weights: &Self::Weights) -> usize;

    /// Called on the thread of a stage before its engine is made: where it gets its part of the machine.
    ///
    /// # Errors
    /// If it cannot have it.
    fn enter(&self, role: Role) -> Result<(), EngineError> {
        let _ = role;
        Ok(())
    }

    /// Called before each step of a stage. A test makes stages fail here.
    fn before_step(&self, role: Role, index: usize) {
        let _ = (role, index);
    }
}
