//! A run from its start to its end: starts the supervisor over the wired stages, hands updates to the program, and leaves
//! in order.

use crate::engine::{EngineError, Engines};
use crate::messages::Report;
use crate::meters::Meters;
use crate::shared::Run;
use crate::supervisor::{Supervisor, SupervisorArgs};
use crate::wiring::{Wiring, wire};
use crate::work::Update;
use crate::{OrderError, Plan, Remote, Role};
use ractor::Actor;
use saddle_core::PolicyVersion;
use saddle_flow::invariants::{self, Invariant};
use saddle_flow::{Counts, EdgeStats, FlowError, Reason, Receiver, Snapshot, Stage, lock};
use saddle_telemetry::Telemetry;
use saddle_training::Dual;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// A run under way. Dropped, it leaves at once.
pub struct System<E: Engines> {
    run: Arc<Run<E>>,
    remote: Remote,
    supervised: Option<JoinHandle<()>>,
    updates: Receiver<Update>,
    edges: Vec<Arc<EdgeStats>>,
    /// The program, as it waits for updates.
    program: Stage,
    /// Last: everything above lives on it.
    runtime: Runtime,
}

/// What happened next in a run.
#[derive(Debug)]
pub enum Event {
    /// An update was published.
    Updated(Box<Update>),
    /// Nothing within the time given.
    Nothing,
    /// The run has made its updates, or has drained.
    Over,
    /// The run was ended, for this reason.
    Stopped(Reason),
}

/// Why a run could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The learner could not be made.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The system gave no threads.
    #[error("cannot start the control plane: {0}")]
    Control(String),
}

/// What a run leaves behind.
#[derive(Debug)]
pub struct Remains<L, W> {
    /// The learner, unless it was lost.
    pub learner: Option<L>,
    /// The newest weights that were published.
    pub weights: Snapshot<PolicyVersion, W>,
    /// What became of the prompts.
    pub counts: Counts,
    /// Whether everything that was under way has ended (FLOW-4).
    pub drained: bool,
}

impl<E: Engines> System<E> {
    /// Starts a run. The learner is made on this thread, the other engines on those of their stages.
    ///
    /// # Errors
    /// If the learner cannot be made, or the threads of the control plane.
    pub fn start(plan: Plan, engines: E, duals: Vec<Dual>, telemetry: Arc<Telemetry>) -> Result<Self, StartError> {
        let meters = Arc::new(Meters::new(telemetry));
        let run = Arc::new(Run::new(plan, engines, duals, meters)?);
        let control = |error: &dyn std::fmt::Display| StartError::Control(error.to_string());
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("control").enable_all().build();
        let runtime = runtime.map_err(|error| control(&error))?;
        let Wiring { starts, edges, updates } = wire(&run);
        run.meters.watch(run.credits.clone(), edges.clone());
        let args = SupervisorArgs {
            plan: run.plan.clone(),
            starts,
            ledger: run.ledger.clone(),
            root: run.root.clone(),
            meters: Arc::clone(&run.meters),
            is_learner_irreplaceable: {
                let run = Arc::clone(&run);
                Arc::new(move || !run.engines.can_remake_learner() && lock(&run.pending).engine.is_none())
            },
        };
        let spawned = runtime.block_on(Actor::spawn(None, Supervisor, args));
        let (supervisor, supervised) = spawned.map_err(|error| control(&error))?;
        let program = Stage::new("program", run.root.child(), run.plan.patience());
        let remote =
            Remote { supervisor, ledger: run.ledger.clone(), drain: run.drain.clone(), plan: run.plan.clone() };
        Ok(Self { run, remote, supervised: Some(supervised), updates, edges, program, runtime })
    }

    /// The next update, for at most `patience`. To be called again and again: the learner waits for its updates to be
    /// taken.
    pub fn next(&self, patience: Duration) -> Event {
        match self.updates.recv(&self.program.with_patience(patience)) {
            Ok(Some(update)) => {
                self.run.meters.learnt(&update);
                Event::Updated(Box::new(update))
            }
            Err(FlowError::Cancelled { reason, .. }) => Event::Stopped(reason),
            Ok(None) => Event::Over,
            Err(_) if self.is_over() => Event::Over,
            Err(_) if self.supervised.as_ref().is_none_or(JoinHandle::is_finished) => {
                Event::Stopped("the supervisor has failed".into())
            }
            Err(_) => Event::Nothing,
        }
    }

    /// Whether the learner is done, has told of its last update, and that was taken: asked in this order.
    fn is_over(&self) -> bool {
        let drained = self.run.drain.is_cancelled() && self.run.ledger.counts().open == 0;
        let done = self.run.is_over() || drained;
        let told = lock(&self.run.pending).batch.is_none();
        done && told && self.updates.stats().read().items == 0
    }

    /// Commands to the run, from other threads and from tasks.
    #[must_use]
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// [`Remote::drain`]; [`Event::Over`] follows.
    pub fn drain(&self) {
        self.remote.drain();
    }

    /// Whether the run drains.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.run.drain.is_cancelled()
    }

    /// Ends the run now, with a reason.
    pub fn stop(&self, reason: impl Into<Reason>) {
        self.run.root.cancel(reason);
    }

    /// [`Remote::scale`].
    ///
    /// # Errors
    /// [`OrderError`].
    pub fn scale(&self, role: Role, count: usize) -> Result<(), OrderError> {
        self.runtime.block_on(self.remote.scale(role, count))
    }

    /// [`Remote::observe`].
    ///
    /// # Errors
    /// [`OrderError::Gone`].
    pub fn observe(&self) -> Result<Report, OrderError> {
        self.runtime.block_on(self.remote.observe())
    }

    /// The edges' counters.
    #[must_use]
    pub fn edges(&self) -> &[Arc<EdgeStats>] {
        &self.edges
    }

    /// What became of the prompts so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.run.ledger.counts()
    }

    /// Credits that are free, and in all.
    #[must_use]
    pub fn credits(&self) -> (usize, usize) {
        (self.run.credits.available(), self.run.credits.total())
    }

    /// Version of the newest weights.
    #[must_use]
    pub fn version(&self) -> PolicyVersion {
        self.run.weights.version()
    }

    /// Where the control plane runs; a server may run there too.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        self.runtime.handle()
    }

    /// Ends every stage and waits for their threads, for at most `patience`.
    #[must_use]
    pub fn finish(mut self, patience: Duration) -> Remains<E::Learner, E::Weights> {
        let in_order = !self.run.root.is_cancelled() && self.is_over();
        self.run.root.cancel("the run is over");
        if let Some(supervised) = self.supervised.take() {
            // A thread that hangs is left behind.
            let _ = self.runtime.block_on(async { tokio::time::timeout(patience, supervised).await });
        }
        let counts = self.run.ledger.counts();
        // A version that waits to be examined holds no prompt.
        let evaluator = self.run.plan.name(Role::Evaluator);
        let left = self.edges.iter().filter(|edge| !edge.name().ends_with(&*evaluator)).map(|edge| edge.read().items);
        let left = left.sum();
        let (available, total) = self.credits();
        let drained = invariants::drained(counts.open, left, available, total);
        // A drain that was cut short, by a second signal or a failure, owes nothing.
        invariants::check(Invariant::Flow4, drained || !in_order || !self.is_draining());
        let learner = lock(&self.run.pending).engine.take();
        Remains { learner, weights: self.run.weights.newest(), counts, drained }
    }
}

impl<E: Engines> Drop for System<E> {
    fn drop(&mut self) {
        self.run.root.cancel("the run was given up");
    }
}

/// Waits for the end of a run, handing each update on. Returns the reason if the run was stopped.
pub fn follow<E: Engines>(
    system: &System<E>,
    deadline: Instant,
    mut updated: impl FnMut(&System<E>, Update),
) -> Result<(), Reason> {
    while Instant::now() < deadline {
        match system.next(Duration::from_millis(100)) {
            Event::Updated(update) => updated(system, *update),
            Event::Nothing => {}
            Event::Over => return Ok(()),
            Event::Stopped(reason) => return Err(reason),
        }
    }
    Err("the deadline has passed".into())
}
