//! How often a stage may be restarted: so many times within a window, after a wait that doubles with each. Time in which it hung
//! does not count, else a stage that always hangs would never use its restarts up.

use saddle_training::config::{SupervisionSection, seconds};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Longest wait before a restart.
const BACKOFF_LIMIT: Duration = Duration::from_secs(60);

/// The restarts of one stage within the window.
#[derive(Clone, Debug)]
pub(crate) struct Restarts {
    limit: usize,
    window: Duration,
    backoff: Duration,
    recent: VecDeque<Instant>,
    /// In all.
    hung: Duration,
}

impl Restarts {
    pub(crate) fn new(section: &SupervisionSection) -> Self {
        let (window, backoff) = (seconds(section.window_seconds), seconds(section.backoff_seconds));
        Self { limit: section.restarts, window, backoff, recent: VecDeque::new(), hung: Duration::ZERO }
    }

    /// How long to wait before the restart after a failure at `now`, of a stage that had hung for `hung`; none if there were too
    /// many.
    pub(crate) fn next(&mut self, now: Instant, hung: Duration) -> Option<Duration> {
        self.hung += hung;
        let now = now.checked_sub(self.hung).unwrap_or(now);
        while self.recent.front().is_some_and(|&first| now.saturating_duration_since(first) > self.window) {
            self.recent.pop_front();
        }
        if self.recent.len() >= self.limit {
            return None;
        }
        let doublings = u32::try_from(self.recent.len()).unwrap_or(u32::MAX).min(16);
        self.recent.push_back(now);
        Some(self.backoff.saturating_mul(1 << doublings).min(BACKOFF_LIMIT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restarts() -> Restarts {
        let section = SupervisionSection {
            restarts: 3,
            window_seconds: 10.0,
            backoff_seconds: 0.5,
            ..SupervisionSection::default()
        };
        Restarts::new(&section)
    }

    #[test]
    fn the_wait_doubles_until_there_were_too_many() {
        let (mut restarts, now) = (restarts(), Instant::now());
        let waits: Vec<_> = (0..4).map(|_| restarts.next(now, Duration::ZERO).map(|wait| wait.as_secs_f64())).collect();
        assert_eq!(waits, [Some(0.5), Some(1.0), Some(2.0), None]);
    }

    #[test]
    fn restarts_out_of_the_window_do_not_count() {
        let (mut restarts, start) = (restarts(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let half = Some(Duration::from_millis(500));
        let mut next = |seconds| restarts.next(after(seconds), Duration::ZERO);
        assert_eq!([0, 11, 22, 33, 44].map(&mut next), [half; 5]);
        assert_eq!(next(54), Some(Duration::from_secs(1)), "at the edge of the window");
    }

    #[test]
    fn a_stage_that_hangs_for_longer_than_the_window_each_time_is_given_up_too() {
        let (mut restarts, start) = (restarts(), Instant::now() + Duration::from_secs(1000));
        let hang = Duration::from_secs(30);
        let waits = (1..=4).map(|time| restarts.next(start + hang * time, hang).is_some());
        assert_eq!(waits.collect::<Vec<_>>(), [true, true, true, false]);
    }
}
