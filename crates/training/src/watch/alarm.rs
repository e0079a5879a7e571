//! A condition that somebody has to know of.

use serde::{Deserialize, Serialize};

/// Updates after which a condition that lasts is told of again.
const REPEAT_UPDATES: u64 = 50;
/// Updates after which one that was over is told of again.
const QUIET_UPDATES: u64 = 10;

/// One condition, told when it begins, every so often while it lasts, and when it ends. One that comes and goes is told of
/// every so often too, and not each time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    since: Option<u64>,
    /// The update at which it was last told to have begun or to last.
    told: Option<u64>,
    /// Whether this time it was told of.
    is_known: bool,
}

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It holds from now on.
    Begun,
    /// It has held for so many updates.
    Lasts(u64),
    /// It is over, after so many updates.
    Ended(u64),
}

impl Alarm {
    /// Whether the condition holds at `update`.
    pub fn observe(&mut self, update: u64, holds: bool) -> Option<Turn> {
        let begun = match (self.since, holds) {
            (None, false) => return None,
            (Some(since), false) => {
                self.since = None;
                return std::mem::take(&mut self.is_known).then(|| Turn::Ended(update.saturating_sub(since)));
            }
            (since, true) => *self.since.insert(since.unwrap_or(update)),
        };
        let quiet = if self.is_known { REPEAT_UPDATES } else { QUIET_UPDATES };
        if self.told.is_some_and(|told| update.saturating_sub(told) < quiet) {
            return None;
        }
        self.told = Some(update);
        self.is_known = true;
        Some(if begun == update { Turn::Begun } else { Turn::Lasts(update - begun) })
    }

    /// Whether the condition held when it was last looked at.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.since.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_told_as_it_begins_every_fifty_updates_and_as_it_ends() {
        let mut alarm = Alarm::default();
        let turns: Vec<(u64, Turn)> = (1..=130)
            .filter_map(|update| Some((update, alarm.observe(update, (10..120).contains(&update))?)))
            .collect();
        assert_eq!(turns, [(10, Turn::Begun), (60, Turn::Lasts(50)), (110, Turn::Lasts(100)), (120, Turn::Ended(110))]);
    }

    #[test]
    fn one_that_comes_and_goes_is_told_of_every_ten_updates_and_its_unsaid_ends_are_not() {
        let mut alarm = Alarm::default();
        let turns: Vec<(u64, Turn)> =
            (0..24).filter_map(|update| Some((update, alarm.observe(update, update % 2 == 0)?))).collect();
        let begun_and_ended = |at| [(at, Turn::Begun), (at + 1, Turn::Ended(1))];
        assert_eq!(turns, [begun_and_ended(0), begun_and_ended(10), begun_and_ended(20)].concat());
    }
}
