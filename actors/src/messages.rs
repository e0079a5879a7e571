//! What is said on the control plane. Nothing large travels here, and nothing that is counted: mailboxes have no bound.

use crate::Role;
use crate::shared::Start;
use crate::standstill::Standstill;
use ractor::{ActorRef, RpcReplyPort};
use saddle_flow::{Activity, Reason, Stage};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// To a stage's control actor.
#[derive(Debug)]
pub(crate) enum Control {
    /// Stand still before the next step, or go on.
    Pause(bool),
    /// Leave, for this reason.
    Stop(Reason),
    /// From the stage's thread, as the last thing it does.
    Ended(Exit),
}

/// How a stage's thread ended.
#[derive(Debug)]
pub(crate) enum Exit {
    /// There is nothing more to do, or it was told to leave.
    Left,
    /// It failed.
    Failed(Failure),
}

/// How a stage failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Failure {
    pub(crate) cause: Cause,
    pub(crate) reason: Reason,
    /// Whether another start may do better.
    pub(crate) curable: bool,
}

/// Why a stage was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// It panicked.
    Panic,
    /// It gave up with an error.
    Error,
    /// It worked without a sign of life.
    Hang,
}

impl Cause {
    /// Its name as a metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Error => "error",
            Self::Hang => "hang",
        }
    }
}

/// What a control actor is started with.
pub(crate) struct StageArgs {
    pub(crate) stage: Stage,
    pub(crate) index: usize,
    pub(crate) start: Start,
    pub(crate) paused: bool,
    pub(crate) standstill: Arc<Standstill>,
    /// Told once its engine is there, or why there is none.
    pub(crate) ready: oneshot::Sender<Result<(), String>>,
}

/// Tells of a stage's engine.
pub(crate) type Started = oneshot::Receiver<Result<(), String>>;

/// To the supervisor.
pub(crate) enum Order {
    /// Look after the pulses.
    Check,
    /// The back-off of this stage is over, if it is still of this generation.
    Restart { role: Role, index: usize, generation: u64 },
    /// Have so many stages of a role.
    Scale { role: Role, count: usize, reply: RpcReplyPort<Result<(), String>> },
    /// Let all stages of a role stand still, or go on.
    Pause { role: Role, paused: bool },
    /// Let everybody go on from now on: the run drains.
    Drain,
    /// Tell how the stages are.
    Observe(RpcReplyPort<Report>),
}

/// The stages and what befell them.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Every stage, those that have ended included.
    pub stages: Vec<StageReport>,
    /// The last failures, oldest first.
    pub failures: Vec<StageFailure>,
    /// Stages replaced since the start.
    pub restarts: u64,
    /// Share of the learner's busy time in which some generator was busy too, as sampled.
    pub overlap_ratio: f64,
}

/// One stage.
#[derive(Clone, Debug)]
pub struct StageReport {
    /// What it does.
    pub role: Role,
    /// Name of its role.
    pub name: Arc<str>,
    /// Which of its role it is.
    pub index: usize,
    /// Whether it is there, and goes on.
    pub state: StageState,
    /// What it does now.
    pub activity: Activity,
    /// Time since its last sign of life.
    pub age: Duration,
    /// Time spent on each activity, in the order of [`Activity::ALL`], former threads included.
    pub spent: [Duration; 4],
}

/// Whether a stage is there, and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageState {
    /// Its thread runs.
    Running,
    /// Its thread runs, and stands still because somebody has paused its role.
    Paused,
    /// It waits for its restart, or has ended.
    Absent,
}

impl StageState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Running, Self::Paused, Self::Absent];

    /// Its name as a metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Absent => "absent",
        }
    }
}

/// A stage that was replaced, or ended the run.
#[derive(Clone, Debug)]
pub struct StageFailure {
    /// Name of its thread, such as `generator-0`.
    pub stage: Arc<str>,
    /// Why.
    pub cause: Cause,
    /// Why, in words.
    pub reason: Reason,
}

/// A stage's thread tells its control actor, as the supervisor does. Both only ever cast.
pub(crate) fn tell(actor: &ActorRef<Control>, message: Control) {
    // An actor that is gone has nobody left to tell.
    let _ = actor.send_message(message);
}
