//! The one way in which everything here waits: try; only if that gives nothing, wait for a change and try again, until
//! the stage is cancelled or its patience ends. A thread waits parked, a task suspended; both beat the stage's pulse.

use crate::{Activity, FlowError, Stage};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;
use tokio::sync::Notify;

/// How often a wait beats.
const BEAT: Duration = Duration::from_secs(1);
/// A wait that comes back later than this did not wait: the process was stopped, or the machine slept.
const STOPPED: Duration = Duration::from_secs(5);

/// A wait of `stage` at the place named `at`.
pub(crate) struct Wait<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) at: &'a Arc<str>,
    /// Told after every change that could let an attempt succeed.
    pub(crate) changed: &'a Notify,
    /// What the stage does while it waits.
    pub(crate) activity: Activity,
}

impl Wait<'_> {
    /// Parks the thread until `attempt` gives something. `waited` hears of the time, if there was a wait.
    pub(crate) fn on_thread<T>(
        &self,
        mut attempt: impl FnMut() -> Option<T>,
        waited: impl FnOnce(Duration),
    ) -> Result<T, FlowError> {
        if let Some(found) = self.at_once(&mut attempt)? {
            return Ok(found);
        }
        let clock = self.stage.clock();
        let start = clock.now();
        let mut deadline = start + self.stage.patience();
        let mut found = pin!(self.until(attempt));
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        self.stage.pulse().enter(self.activity);
        let result = loop {
            if let Poll::Ready(result) = found.as_mut().poll(&mut Context::from_waker(&waker)) {
                break result;
            }
            let now = clock.now();
            if now >= deadline {
                break Err(self.deadline());
            }
            let next = deadline.min(now + BEAT);
            clock.park_until(next);
            deadline += stopped(clock.now().saturating_duration_since(next));
            self.stage.pulse().beat();
        };
        self.stage.pulse().enter(Activity::Busy);
        waited(clock.now().saturating_duration_since(start));
        result
    }

    /// The same for a task of a tokio runtime with a timer. Dropping the future gives the wait up.
    pub(crate) async fn in_task<T>(
        &self,
        mut attempt: impl FnMut() -> Option<T>,
        waited: impl FnOnce(Duration),
    ) -> Result<T, FlowError> {
        if let Some(found) = self.at_once(&mut attempt)? {
            return Ok(found);
        }
        let start = tokio::time::Instant::now();
        let mut deadline = start + self.stage.patience();
        let mut found = pin!(self.until(attempt));
        self.stage.pulse().enter(self.activity);
        let result = loop {
            let next = deadline.min(tokio::time::Instant::now() + BEAT);
            let woken = tokio::time::timeout_at(next, found.as_mut()).await;
            deadline += stopped(next.elapsed());
            match woken {
                Ok(result) => break result,
                Err(_) if next >= deadline => break Err(self.deadline()),
                Err(_) => self.stage.pulse().beat(),
            }
        };
        self.stage.pulse().enter(Activity::Busy);
        waited(start.elapsed());
        result
    }

    /// The first attempt. A cancelled stage gets nothing even where something is there: it may have been replaced.
    fn at_once<T>(&self, attempt: &mut impl FnMut() -> Option<T>) -> Result<Option<T>, FlowError> {
        match self.stage.cancel().reason() {
            Some(reason) => Err(FlowError::Cancelled { at: Arc::clone(self.at), reason }),
            None => Ok(attempt()),
        }
    }

    async fn until<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> Result<T, FlowError> {
        let mut cancelled = pin!(self.stage.cancel().cancelled());
        loop {
            // Made before the attempt: `notify_waiters` reaches it from here on, so that no change is missed.
            let mut change = pin!(self.changed.notified());
            if let Some(found) = self.at_once(&mut attempt)? {
                return Ok(found);
            }
            poll_fn(|context| {
                let ended = cancelled.as_mut().poll(context).is_ready() || change.as_mut().poll(context).is_ready();
                if ended { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
    }

    fn deadline(&self) -> FlowError {
        FlowError::Deadline { at: Arc::clone(self.at), patience: self.stage.patience() }
    }
}

/// The time that a wait is owed, for it was not awake: all of `late`, if that is long.
fn stopped(late: Duration) -> Duration {
    if late > STOPPED { late } else { Duration::ZERO }
}

/// Wakes a parked thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
