//! What all stages of a run share.

use crate::engine::{EngineError, Engines, Learn};
use crate::meters::Meters;
use crate::pending_batch::PendingBatch;
use crate::work::StepRequest;
use crate::{Plan, Role};
use saddle_core::{PolicyVersion, PromptOrdinal};
use saddle_flow::{Cancel, Credits, FlowError, Latest, Ledger};
use saddle_training::{Dual, DualStep};
use std::sync::{Arc, Mutex};

/// The multipliers that an update reads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Multipliers {
    pub(crate) steps: Vec<DualStep>,
}

impl Multipliers {
    /// λ of each constraint.
    pub(crate) fn values(&self) -> Vec<f64> {
        self.steps.iter().map(|step| step.multiplier).collect()
    }
}

/// One run.
pub(crate) struct Run<E: Engines> {
    pub(crate) plan: Plan,
    pub(crate) engines: E,
    pub(crate) credits: Credits,
    pub(crate) ledger: Ledger,
    pub(crate) weights: Latest<PolicyVersion, E::Weights>,
    /// By the number of steps made: those that update k reads are the (k + 1)th.
    pub(crate) multipliers: Latest<u64, Multipliers>,
    pub(crate) duals: Mutex<Vec<Dual>>,
    /// The step that the learner waits for, until it is made: a multiplier that is lost inside it leaves it to its successor.
    pub(crate) due: Mutex<Option<StepRequest>>,
    pub(crate) pending: Mutex<PendingBatch<E::Learner>>,
    pub(crate) meters: Arc<Meters>,
    /// Ends every stage.
    pub(crate) root: Cancel,
    /// Cancelled while the run drains.
    pub(crate) drain: Cancel,
}

impl<E: Engines> Run<E> {
    /// Nothing is under way yet; the learner is made on this thread.
    pub(crate) fn new(plan: Plan, engines: E, duals: Vec<Dual>, meters: Arc<Meters>) -> Result<Self, EngineError> {
        let first = PolicyVersion(0);
        let learner = engines.learner(first)?;
        let weights = Latest::new("weights", first, learner.snapshot()?);
        Ok(Self {
            credits: Credits::for_staleness(plan.schedule.staleness, plan.batch()),
            ledger: Ledger::new(PromptOrdinal(0), plan.attempts(), Arc::<Meters>::clone(&meters)),
            weights,
            multipliers: Latest::new("multipliers", 0, Multipliers::default()),
            duals: Mutex::new(duals),
            due: Mutex::new(None),
            pending: Mutex::new(PendingBatch::new(learner)),
            meters,
            root: Cancel::new(),
            drain: Cancel::new(),
            plan,
            engines,
        })
    }

    /// Whether every update has been made.
    pub(crate) fn is_over(&self) -> bool {
        self.weights.version().0 >= self.plan.updates
    }
}

/// Why a stage gave up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StageError {
    #[error(transparent)]
    Flow(#[from] FlowError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Whether a stage goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Continue,
    Done,
}

/// What a stage does, a step at a time. It lives and dies on the stage's thread.
pub(crate) trait Work {
    fn step(&mut self, stage: &saddle_flow::Stage) -> Result<Next, StageError>;

    /// Hands back what it holds, without blame: it was told to leave.
    fn leave(&mut self) {}
}

/// Makes a stage's work, on the stage's thread.
pub(crate) type Start = Arc<dyn Fn(usize) -> Result<Box<dyn Work>, StageError> + Send + Sync>;

/// The starts of all roles.
pub(crate) type Starts = std::collections::BTreeMap<Role, Start>;
