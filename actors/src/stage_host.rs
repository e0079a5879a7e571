//! A stage's thread and its control actor.
//!
//! The thread makes the stage's work, with the tensors in it, and runs it step by step; a panic in a step is caught and
//! becomes the end of its control actor, which the supervisor hears of. That one can be told to pause, resume and
//! stop. To observe takes no message: the stage's pulse is shared.

use crate::engine::EngineError;
use crate::messages::{Cause, Control, Exit, Failure, StageArgs, tell};
use crate::shared::{Next, StageError, Start, Work};
use crate::standstill::Standstill;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use saddle_flow::{FlowError, Latest, Stage};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use tokio::sync::oneshot;

/// The control actor.
pub(crate) struct StageActor;

/// What a control actor knows of its thread.
pub(crate) struct Thread {
    stage: Stage,
    /// Whether to stand still, by the number of times that this was said.
    pause: Latest<u64, bool>,
}

impl Actor for StageActor {
    type Msg = Control;
    type State = Thread;
    type Arguments = StageArgs;

    async fn pre_start(&self, myself: ActorRef<Control>, args: StageArgs) -> Result<Thread, ActorProcessingErr> {
        let StageArgs { stage, index, start, paused, standstill, ready } = args;
        let pause = Latest::new("pause", 0, paused);
        let thread = Thread { stage: stage.clone(), pause: pause.clone() };
        thread::Builder::new().name(stage.name().to_owned()).spawn(move || {
            let exit = run(&stage, index, &start, ready, &pause, &standstill);
            drop(start);
            tell(&myself, Control::Ended(exit));
        })?;
        Ok(thread)
    }

    async fn handle(
        &self,
        myself: ActorRef<Control>,
        message: Control,
        thread: &mut Thread,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Control::Pause(paused) => thread.pause.publish(thread.pause.version() + 1, paused)?,
            Control::Stop(reason) => thread.stage.cancel().cancel(reason),
            Control::Ended(Exit::Left) => myself.stop(None),
            Control::Ended(Exit::Failed(failure)) => return Err(failure.into()),
        }
        Ok(())
    }
}

/// The life of the thread.
fn run(
    stage: &Stage,
    index: usize,
    start: &Start,
    ready: oneshot::Sender<Result<(), String>>,
    pause: &Latest<u64, bool>,
    standstill: &Standstill,
) -> Exit {
    let made = match catch_unwind(AssertUnwindSafe(|| start(index))) {
        Ok(made) => made.map_err(ended),
        Err(panic) => Err(panicked(panic.as_ref())),
    };
    let told = match &made {
        Ok(_) => Ok(()),
        Err(Exit::Failed(failure)) => Err(format!("{}: {failure}", stage.name())),
        Err(Exit::Left) => Err(format!("{} was told to leave", stage.name())),
    };
    // Few wait to hear of it.
    let _ = ready.send(told);
    let mut work = match made {
        Ok(work) => work,
        Err(exit) => return exit,
    };
    let exit = loop {
        match catch_unwind(AssertUnwindSafe(|| step(work.as_mut(), stage, pause))) {
            Ok(Ok(Next::Continue)) => stage.pulse().beat(),
            Ok(Ok(Next::Done)) => break Exit::Left,
            Ok(Err(StageError::Flow(FlowError::Deadline { patience, .. })))
                if standstill.excuses(patience, stage.clock().now()) =>
            {
                stage.pulse().beat();
            }
            Ok(Err(error)) => break ended(error),
            Err(panic) => break panicked(panic.as_ref()),
        }
    };
    // What a panic left behind may panic again.
    let dropped = catch_unwind(AssertUnwindSafe(|| {
        if matches!(exit, Exit::Left) {
            work.leave();
        }
        drop(work);
    }));
    dropped.map_or_else(|panic| panicked(panic.as_ref()), |()| exit)
}

/// One step, or one wait of a stage that stands still.
fn step(work: &mut dyn Work, stage: &Stage, pause: &Latest<u64, bool>) -> Result<Next, StageError> {
    if let Some(reason) = stage.cancel().reason() {
        return Err(FlowError::Cancelled { at: stage.name().into(), reason }.into());
    }
    let said = pause.newest();
    if !*said.value {
        return work.step(stage);
    }
    match pause.wait_newer(said.version, stage) {
        Ok(_) | Err(FlowError::Deadline { .. }) => Ok(Next::Continue),
        Err(error) => Err(error.into()),
    }
}

fn ended(error: StageError) -> Exit {
    if let StageError::Flow(FlowError::Cancelled { .. }) = error {
        return Exit::Left;
    }
    let curable = !matches!(error, StageError::Engine(EngineError::Fatal(_)));
    Exit::Failed(Failure { cause: Cause::Error, reason: error.to_string().into(), curable })
}

fn panicked(panic: &(dyn Any + Send)) -> Exit {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let reason = format!("panicked: {}", text.unwrap_or("without a message")).into();
    Exit::Failed(Failure { cause: Cause::Panic, reason, curable: true })
}
