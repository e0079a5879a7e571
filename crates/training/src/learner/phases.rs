//! Where the time of an update goes. On a GPU, whose operations are only queued, it is booked where results are awaited.

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
    const ALL: [Self; 5] = [Self::LogProb, Self::Value, Self::Policy, Self::Critic, Self::Optimizer];

    /// Its name in `metrics.jsonl`.
    fn metric(self) -> &'static str {
        match self {
            Self::LogProb => "logprob_seconds",
            Self::Value => "value_seconds",
            Self::Policy => "policy_seconds",
            Self::Critic => "critic_seconds",
            Self::Optimizer => "optimizer_seconds",
        }
    }
}

/// A stopwatch with a sum for each phase. What is between a [`Self::skip`] and the next lap is that lap's.
#[derive(Debug)]
pub(super) struct Stopwatch {
    since: Cell<Instant>,
    seconds: [Cell<f64>; Phase::ALL.len()],
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

    /// The sums, by the names of their metrics.
    pub(super) fn metrics(&self) -> impl Iterator<Item = (String, f64)> {
        Phase::ALL.into_iter().zip(&self.seconds).map(|(phase, sum)| (phase.metric().to_owned(), sum.get()))
    }
}
