//! Time as the data plane reads it: the machine's clock, or one that a test turns by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Where a stage takes its time from.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's monotonic clock.
    #[default]
    Real,
    /// A clock that stands still until it is turned. For tests that run a stage inline, on one thread: a wait that would
    /// block turns the clock to its deadline and ends there, because nobody else could end it.
    Manual(ManualClock),
}

impl Clock {
    /// The time.
    #[must_use]
    pub fn now(&self) -> Instant {
        match self {
            Self::Real => Instant::now(),
            Self::Manual(clock) => clock.now(),
        }
    }

    /// The time since `start`.
    #[must_use]
    pub fn since(&self, start: Instant) -> Duration {
        self.now().saturating_duration_since(start)
    }

    /// Parks this thread until it is unparked, or until `deadline` at the latest; may return early.
    pub(crate) fn park_until(&self, deadline: Instant) {
        match self {
            Self::Real => thread::park_timeout(deadline.saturating_duration_since(Instant::now())),
            Self::Manual(clock) => clock.advance(deadline.saturating_duration_since(clock.now())),
        }
    }
}

/// A clock that only [`ManualClock::advance`] moves. Clones show the same time.
#[derive(Clone, Debug)]
pub struct ManualClock {
    origin: Instant,
    elapsed_nanos: Arc<AtomicU64>,
}

impl ManualClock {
    /// A clock that stands at the present.
    #[must_use]
    pub fn new() -> Self {
        Self { origin: Instant::now(), elapsed_nanos: Arc::default() }
    }

    /// Turns it forward.
    pub fn advance(&self, by: Duration) {
        self.elapsed_nanos.fetch_add(nanos(by), Ordering::Relaxed);
    }

    /// What it shows.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.origin + Duration::from_nanos(self.elapsed_nanos.load(Ordering::Relaxed))
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

/// Nanoseconds of a duration; five centuries fit.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
