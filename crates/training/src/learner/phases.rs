//! Where the time of an update goes. On a GPU, whose operations are only queued, it is booked where results are awaited.

use crate::metrics::PhaseSeconds;
use std::cell::Cell;
use std::time::Instant;

/// A part of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// log π_k of the batch.
    LogProb,
    /// Values of the batch, before the first step.
    Value,
    /// The policy's passes, forward and backward, PTX included.
    Policy,
    /// The critics' passes.
    Critic,
    /// Optimiser steps.
    Optimizer,
}

impl Phase {
    const COUNT: usize = 5;
}

/// A stopwatch with a sum for each phase. What is between a [`Self::skip`] and the next lap is that lap's.
#[derive(Debug)]
pub(super) struct Stopwatch {
    since: Cell<Instant>,
    seconds: [Cell<f64>; Phase::COUNT],
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self { since: Cell::new(Instant::now()), seconds: Default::default() }
    }

    /// Books the time since the last lap or skip on `phase`.
    pub(super) fn lap(&self, phase: Phase) {
        let now = Instant::now();
        let sum = &self.seconds[phase as usize];
        sum.set(sum.get() + now.duration_since(self.since.replace(now)).as_secs_f64());
    }

    /// Books the time since the last lap or skip on nothing.
    pub(super) fn skip(&self) {
        self.since.set(Instant::now());
    }

    /// Books what stopwatches that ran side by side have booked, the mean of theirs, and the time since on nothing. They
    /// start anew.
    pub(super) fn absorb<'a>(&self, others: impl ExactSizeIterator<Item = &'a Self>) {
        let count = others.len() as f64;
        for other in others {
            for (sum, seconds) in self.seconds.iter().zip(&other.seconds) {
                sum.set(sum.get() + seconds.take() / count);
            }
        }
        self.skip();
    }

    /// The sums.
    pub(super) fn seconds(&self) -> PhaseSeconds {
        let seconds = |phase: Phase| self.seconds[phase as usize].get();
        PhaseSeconds {
            logprob: seconds(Phase::LogProb),
            value: seconds(Phase::Value),
            policy: seconds(Phase::Policy),
            critic: seconds(Phase::Critic),
            optimizer: seconds(Phase::Optimizer),
        }
    }
}
