//! A stage's pulse: when it last showed life, and what it spent its time on.
//!
//! One thread beats, anybody reads. Waits beat for the stage about once a second; a step that takes longer beats itself.

use crate::{Clock, lock};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What a stage does with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Activity {
    /// Its own work.
    Busy,
    /// Waiting for input.
    Starved,
    /// Waiting for room to put its output.
    Blocked,
    /// Waiting for a version: of weights, of the multipliers, or for a pause to end.
    Sync,
}

impl Activity {
    /// Every activity.
    pub const ALL: [Self; 4] = [Self::Busy, Self::Starved, Self::Blocked, Self::Sync];

    /// Its name as a metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Starved => "starved",
            Self::Blocked => "blocked",
            Self::Sync => "sync",
        }
    }
}

/// The pulse of one stage.
#[derive(Debug)]
pub struct Pulse {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    last_beat: Instant,
    activity: Activity,
    /// Up to the last beat, in the order of [`Activity::ALL`].
    spent: [Duration; Activity::ALL.len()],
}

impl Pulse {
    /// A stage that starts now, busy.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let state = State { last_beat: clock.now(), activity: Activity::Busy, spent: Default::default() };
        Self { clock, state: Mutex::new(state) }
    }

    /// Shows life, and books the time since the last beat on what the stage is doing.
    pub fn beat(&self) {
        let now = self.clock.now();
        lock(&self.state).beat(now);
    }

    /// What the stage is doing.
    #[must_use]
    pub fn activity(&self) -> Activity {
        lock(&self.state).activity
    }

    /// Beats, and does `next` from here on.
    pub fn enter(&self, next: Activity) {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        state.beat(now);
        state.activity = next;
    }

    /// Time since the last beat.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.clock.now().saturating_duration_since(lock(&self.state).last_beat)
    }

    /// The watchdog's question: was there no beat for longer than `limit`?
    #[must_use]
    pub fn is_late(&self, limit: Duration) -> bool {
        self.age() > limit
    }

    /// Time booked on an activity up to the last beat. It never decreases.
    #[must_use]
    pub fn spent(&self, activity: Activity) -> Duration {
        lock(&self.state).spent[activity as usize]
    }

    /// Time spent on each activity until now, in the order of [`Activity::ALL`]: what a running stage is in the middle of
    /// counts.
    #[must_use]
    pub fn spent_until_now(&self) -> [Duration; Activity::ALL.len()] {
        // Before the lock: a beat in between is later, and nothing is booked twice.
        let now = self.clock.now();
        let mut state = *lock(&self.state);
        state.beat(now);
        state.spent
    }
}

impl State {
    fn beat(&mut self, now: Instant) {
        self.spent[self.activity as usize] += now.saturating_duration_since(self.last_beat);
        self.last_beat = self.last_beat.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ManualClock;

    #[test]
    fn time_is_booked_on_what_the_stage_was_doing() {
        let clock = ManualClock::new();
        let pulse = Pulse::new(Clock::Manual(clock.clone()));
        clock.advance(Duration::from_secs(3));
        pulse.enter(Activity::Starved);
        clock.advance(Duration::from_secs(1));
        pulse.beat();
        clock.advance(Duration::from_secs(1));
        pulse.enter(Activity::Busy);
        let spent = Activity::ALL.map(|activity| pulse.spent(activity).as_secs());
        assert_eq!(spent, [3, 2, 0, 0]);
    }

    #[test]
    fn what_a_stage_is_in_the_middle_of_counts_until_now() {
        let clock = ManualClock::new();
        let pulse = Pulse::new(Clock::Manual(clock.clone()));
        clock.advance(Duration::from_secs(4));
        let seconds = || (pulse.spent(Activity::Busy).as_secs(), pulse.spent_until_now()[0].as_secs());
        assert_eq!((seconds(), pulse.age().as_secs()), ((0, 4), 4), "looking is no sign of life");
        pulse.beat();
        assert_eq!(seconds(), (4, 4));
    }

    #[test]
    fn a_pulse_is_late_above_the_limit_and_not_at_it() {
        let clock = ManualClock::new();
        let pulse = Pulse::new(Clock::Manual(clock.clone()));
        clock.advance(Duration::from_secs(60));
        assert!(!pulse.is_late(Duration::from_secs(60)));
        clock.advance(Duration::from_nanos(1));
        assert!(pulse.is_late(Duration::from_secs(60)));
        pulse.beat();
        assert!(!pulse.is_late(Duration::ZERO));
    }
}
