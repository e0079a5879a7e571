//! Faults at random: stages of a [`fake`](crate::fake) run that panic or hang, and how long it takes until their
//! successors work.

use crate::Role;
use crate::fake::Mishap;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Share of the faults that are hangs; the others are panics.
const HANGS: f64 = 1.0 / 3.0;

/// What befalls the stages of a run.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Of the numbers that choose.
    pub seed: u64,
    /// How many befall each role.
    pub of_each_role: u64,
    /// Chance of one before a step.
    pub chance: f64,
    /// How long a stage hangs. Unless that is longer than the supervisor's patience, it is not replaced.
    pub hang: Duration,
}

/// A stage that failed, and was seen again.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// Whose stage it was.
    pub role: Role,
    /// Whether it hung; else it panicked.
    pub hung: bool,
    /// From the fault to the next step in its place. After a hang, this includes the time until it was noticed.
    pub after: Duration,
}

/// What has befallen them so far.
#[derive(Debug)]
pub struct FaultLog {
    faults: Faults,
    random: ChaCha8Rng,
    counts: BTreeMap<Role, u64>,
    /// Stages that failed and have not been seen again.
    open: BTreeMap<(Role, usize), (bool, Instant)>,
    recoveries: Vec<Recovery>,
}

impl Faults {
    /// A mishap that makes them, and the log that tells of them.
    #[must_use]
    pub fn start(self) -> (Mishap, Arc<Mutex<FaultLog>>) {
        let (random, hang) = (ChaCha8Rng::seed_from_u64(self.seed), self.hang);
        let (counts, open, recoveries) = Default::default();
        let log = Arc::new(Mutex::new(FaultLog { faults: self, random, counts, open, recoveries }));
        let shared = Arc::clone(&log);
        let mishap = move |role, index| {
            let due = shared.lock().unwrap_or_else(PoisonError::into_inner).step(role, index);
            match due {
                Some(true) => sleep(hang),
                Some(false) => resume_unwind(Box::new("a fault at random")),
                None => {}
            }
        };
        (Arc::new(mishap), log)
    }
}

impl FaultLog {
    /// Faults of each role so far.
    #[must_use]
    pub fn counts(&self) -> &BTreeMap<Role, u64> {
        &self.counts
    }

    /// Stages that were seen again, in that order.
    #[must_use]
    pub fn recoveries(&self) -> &[Recovery] {
        &self.recoveries
    }

    /// Books a step, and says whether a fault is due before it: a hang (true) or a panic.
    fn step(&mut self, role: Role, index: usize) -> Option<bool> {
        if let Some((hung, since)) = self.open.remove(&(role, index)) {
            self.recoveries.push(Recovery { role, hung, after: since.elapsed() });
        }
        let count = self.counts.entry(role).or_default();
        if *count == self.faults.of_each_role || !self.random.random_bool(self.faults.chance) {
            return None;
        }
        *count += 1;
        let hung = self.random.random_bool(HANGS);
        self.open.insert((role, index), (hung, Instant::now()));
        Some(hung)
    }
}
