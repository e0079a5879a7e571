//! What a running stage brings to every wait, and what its supervisor sees of it.

use crate::{Cancel, Clock, HeldTickets, Pulse};
use std::sync::Arc;
use std::time::Duration;

/// The longest patience that a stage can have: nobody waits without a deadline.
pub(crate) const PATIENCE_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// A running stage, as edges, credits and cells see it. The stage and its supervisor hold clones of one: the supervisor
/// cancels, watches the pulse, and takes over what is in hand when it replaces the stage.
#[derive(Clone, Debug)]
pub struct Stage {
    name: Arc<str>,
    cancel: Cancel,
    patience: Duration,
    clock: Clock,
    pulse: Arc<Pulse>,
    held: HeldTickets,
}

impl Stage {
    /// A stage on the real clock. No wait of it lasts longer than `patience`, nor than a day.
    pub fn new(name: impl Into<Arc<str>>, cancel: Cancel, patience: Duration) -> Self {
        Self::with_clock(name, cancel, patience, Clock::Real)
    }

    /// The same on another clock; tasks wait on tokio's clock whatever this is.
    pub fn with_clock(name: impl Into<Arc<str>>, cancel: Cancel, patience: Duration, clock: Clock) -> Self {
        let pulse = Arc::new(Pulse::new(clock.clone()));
        let patience = patience.min(PATIENCE_LIMIT);
        Self { name: name.into(), cancel, patience, clock, pulse, held: HeldTickets::default() }
    }

    /// The same stage, waiting for at most `patience`.
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Self {
        Self { patience: patience.min(PATIENCE_LIMIT), ..self.clone() }
    }

    /// Its name, such as `gen-0`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What stops it.
    #[must_use]
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// How long a wait may last.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Where it takes the time from.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Its pulse.
    #[must_use]
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// The tickets that it holds.
    #[must_use]
    pub fn held(&self) -> &HeldTickets {
        &self.held
    }
}
