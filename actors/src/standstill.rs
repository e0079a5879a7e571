//! Whether stages wait in vain because somebody paused others: then nobody is to lose patience.

use crate::Role;
use saddle_flow::lock;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The roles that stand still.
#[derive(Debug, Default)]
pub(crate) struct Standstill(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    paused: BTreeSet<Role>,
    /// When one last went on.
    resumed: Option<Instant>,
}

impl Standstill {
    pub(crate) fn set(&self, role: Role, paused: bool, now: Instant) {
        let mut state = lock(&self.0);
        if paused {
            state.paused.insert(role);
        } else if state.paused.remove(&role) {
            state.resumed = Some(now);
        }
    }

    pub(crate) fn includes(&self, role: Role) -> bool {
        lock(&self.0).paused.contains(&role)
    }

    /// The roles that stand still now.
    pub(crate) fn paused(&self) -> Vec<Role> {
        lock(&self.0).paused.iter().copied().collect()
    }

    /// Whether a wait that has lasted for `patience` may have been for a paused stage.
    pub(crate) fn excuses(&self, patience: Duration, now: Instant) -> bool {
        let state = lock(&self.0);
        let lately = |resumed| now.saturating_duration_since(resumed) <= patience;
        !state.paused.is_empty() || state.resumed.is_some_and(lately)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_excused_while_a_role_stands_still_and_for_as_long_as_it_may_have_begun_before() {
        let (standstill, start) = (Standstill::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let excuses = |now| standstill.excuses(Duration::from_secs(10), after(now));
        assert!(!excuses(0));
        standstill.set(Role::Generator, true, after(1));
        standstill.set(Role::Join, true, after(1));
        standstill.set(Role::Generator, false, after(50));
        assert!(excuses(100) && standstill.includes(Role::Join) && !standstill.includes(Role::Generator));
        standstill.set(Role::Join, false, after(100));
        assert!(excuses(110) && !excuses(111));
        standstill.set(Role::Learner, false, after(200));
        assert!(!excuses(201), "it was not paused");
    }
}
