//! The ledger: every prompt drawn, from the draw until it ends exactly once with an outcome that is counted (FLOW-3).
//!
//! A prompt is handed out with a [`Ticket`] and under a [`Credit`], which the ledger keeps until the prompt ends or comes
//! back. A prompt that comes back waits here without a credit and is handed out again, under a new one and as a new
//! attempt, before any new prompt. So prompts under way or waiting are never more than there are credits, and a source
//! that waits for a credit is woken by a prompt that comes back.
//!
//! The old attempt is void: whatever still carries a ticket of it, such as a stage that hung and was replaced, can no
//! longer end the prompt.

use crate::invariants::{self, Invariant};
use crate::waiting::Wait;
use crate::{Activity, Attempt, Credit, Drawn, FlowError, HeldTickets, Stage, Ticket, lock};
use saddle_core::{Prompt, PromptOrdinal};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// How a prompt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// An update saw its rollout.
    Trained,
    /// Its rollout was too old when the learner took it.
    DroppedStale,
    /// It could not be finished: the run drained, or the prompt leaves no room for a response.
    Failed,
    /// Attempts at it failed too often.
    Quarantined,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Trained, Self::DroppedStale, Self::Failed, Self::Quarantined];

    /// Its name as a metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Trained => "trained",
            Self::DroppedStale => "dropped_stale",
            Self::Failed => "failed",
            Self::Quarantined => "quarantined",
        }
    }
}

/// What the ledger has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Prompts drawn.
    pub drawn: u64,
    /// Prompts that have not ended.
    pub open: u64,
    /// Of these, prompts that came back and wait to be handed out again.
    pub waiting: u64,
    /// Attempts that came back.
    pub came_back: u64,
    /// Prompts ended, in the order of [`Outcome::ALL`].
    pub ended: [u64; Outcome::ALL.len()],
}

impl Counts {
    /// Prompts that ended so.
    #[must_use]
    pub fn ended(&self, outcome: Outcome) -> u64 {
        self.ended[outcome as usize]
    }

    /// Prompts that ended without being trained on; a source that owes a number of trained rollouts draws others instead.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.ended.iter().sum::<u64>() - self.ended(Outcome::Trained)
    }
}

/// Whoever wants to hear how prompts fare. Called from the thread that caused it, outside all locks.
pub trait LedgerObserver: Send + Sync {
    /// The prompt has ended.
    fn ended(&self, ordinal: PromptOrdinal, outcome: Outcome) {
        let _ = (ordinal, outcome);
    }

    /// The attempt failed or was given up; its prompt waits for another, or ends next.
    fn came_back(&self, attempt: Attempt) {
        let _ = attempt;
    }
}

impl LedgerObserver for () {}

/// The ledger of one run. Clones are the same ledger.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Book>);

impl Ledger {
    /// An empty ledger. The first prompt may be `next` or any after it; one whose attempts failed `failures_limit` times
    /// is quarantined.
    #[must_use]
    pub fn new(next: PromptOrdinal, failures_limit: NonZeroU32, observer: Arc<dyn LedgerObserver>) -> Self {
        let pages = Mutex::new(Pages { next, ..Pages::default() });
        let at = "ledger".into();
        Self(Arc::new(Book { at, failures_limit: failures_limit.get(), observer, pages, changed: Notify::new() }))
    }

    /// Hands out a new prompt. Prompts come in the order of their ordinals.
    ///
    /// # Errors
    /// [`FlowError::DrawnAlready`], or [`FlowError::Draining`] once the ledger is closed. The credit goes back.
    pub fn draw(&self, prompt: Prompt, credit: Credit) -> Result<Drawn, FlowError> {
        let ordinal = prompt.ordinal;
        let mut pages = lock(&self.0.pages);
        let refusal = if pages.closed {
            Some(FlowError::Draining { ordinal })
        } else if ordinal < pages.next {
            Some(FlowError::DrawnAlready { ordinal, next: pages.next })
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        pages.next = PromptOrdinal(ordinal.0 + 1);
        pages.counts.drawn += 1;
        let entry = Entry { prompt: prompt.clone(), attempt: 1, failures: 0, credit: Some(credit) };
        pages.open.insert(ordinal, entry);
        pages.check();
        drop(pages);
        self.0.changed.notify_waiters();
        let ticket = Ticket::new(Arc::clone(&self.0), Attempt { ordinal, number: 1 });
        Ok(Drawn { prompt, ticket })
    }

    /// Hands out a prompt that came back, the first in order, as a new attempt.
    ///
    /// # Errors
    /// The credit, if no prompt waits.
    pub fn redraw(&self, credit: Credit) -> Result<Drawn, Credit> {
        let mut pages = lock(&self.0.pages);
        let Some(ordinal) = pages.waiting.pop_first() else { return Err(credit) };
        let Some(entry) = pages.open.get_mut(&ordinal) else { return Err(credit) };
        entry.attempt += 1;
        entry.credit = Some(credit);
        let (prompt, number) = (entry.prompt.clone(), entry.attempt);
        drop(pages);
        self.0.changed.notify_waiters();
        Ok(Drawn { prompt, ticket: Ticket::new(Arc::clone(&self.0), Attempt { ordinal, number }) })
    }

    /// Ends all these prompts, or none: a learner calls it after an update and publishes if it succeeds.
    ///
    /// # Errors
    /// [`FlowError::Superseded`] with the first attempt that is void. The update is to be undone: the other prompts go
    /// back to the source.
    pub fn settle_all(&self, mut tickets: Vec<Ticket>, outcome: Outcome) -> Result<Vec<Credit>, FlowError> {
        let mut pages = lock(&self.0.pages);
        let void = tickets.iter().find(|ticket| !ticket.belongs_to(&self.0) || !pages.is_current(ticket.attempt()));
        if let Some(attempt) = void.map(Ticket::attempt) {
            drop(pages);
            return Err(FlowError::Superseded { attempt });
        }
        tickets.iter_mut().for_each(Ticket::disarm);
        let ordinals: BTreeSet<PromptOrdinal> = tickets.iter().map(|ticket| ticket.attempt().ordinal).collect();
        let credits = ordinals.iter().filter_map(|&ordinal| pages.end(ordinal, outcome)).collect();
        drop(pages);
        for ordinal in ordinals {
            self.0.observer.ended(ordinal, outcome);
        }
        self.0.changed.notify_waiters();
        Ok(credits)
    }

    /// Takes back everything that a stage has in hand, as failures: it hangs and is replaced. Returns how many attempts.
    pub fn revoke(&self, held: &HeldTickets) -> usize {
        held.attempts().into_iter().filter(|&attempt| self.0.come_back(attempt, true)).count()
    }

    /// Begins the drain: no prompt is handed out any more, and one that comes back, or waits, ends as failed. What is under
    /// way ends as it will (FLOW-4).
    pub fn close(&self) {
        let mut pages = lock(&self.0.pages);
        pages.closed = true;
        let waiting = std::mem::take(&mut pages.waiting);
        for &ordinal in &waiting {
            pages.end(ordinal, Outcome::Failed);
        }
        drop(pages);
        for ordinal in waiting {
            self.0.observer.ended(ordinal, Outcome::Failed);
        }
        self.0.changed.notify_waiters();
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        lock(&self.0.pages).counts()
    }

    /// The first `count` prompts that have not ended, in order.
    #[must_use]
    pub fn unfinished(&self, count: usize) -> Vec<PromptOrdinal> {
        lock(&self.0.pages).open.keys().take(count).copied().collect()
    }

    /// Waits until the counts are as wanted: `|counts| counts.open == 0` is the end of a drain.
    ///
    /// # Errors
    /// [`FlowError::Cancelled`] or [`FlowError::Deadline`].
    pub fn wait_until(&self, stage: &Stage, mut wanted: impl FnMut(&Counts) -> bool) -> Result<Counts, FlowError> {
        self.wait(stage).on_thread(|| Some(self.counts()).filter(|counts| wanted(counts)), |_| ())
    }

    /// [`Ledger::wait_until`] for a task.
    ///
    /// # Errors
    /// Those of [`Ledger::wait_until`].
    pub async fn wait_until_async(
        &self,
        stage: &Stage,
        mut wanted: impl FnMut(&Counts) -> bool,
    ) -> Result<Counts, FlowError> {
        self.wait(stage).in_task(|| Some(self.counts()).filter(|counts| wanted(counts)), |_| ()).await
    }

    fn wait<'a>(&'a self, stage: &'a Stage) -> Wait<'a> {
        Wait { stage, at: &self.0.at, changed: &self.0.changed, activity: Activity::Blocked }
    }
}

/// What tickets and the ledger share.
pub(crate) struct Book {
    at: Arc<str>,
    failures_limit: u32,
    observer: Arc<dyn LedgerObserver>,
    pages: Mutex<Pages>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Pages {
    open: BTreeMap<PromptOrdinal, Entry>,
    /// Prompts that came back.
    waiting: BTreeSet<PromptOrdinal>,
    counts: Counts,
    next: PromptOrdinal,
    closed: bool,
}

#[derive(Debug)]
struct Entry {
    prompt: Prompt,
    attempt: u32,
    failures: u32,
    /// `None` while it waits to be handed out again.
    credit: Option<Credit>,
}

impl Book {
    pub(crate) fn is_current(&self, attempt: Attempt) -> bool {
        lock(&self.pages).is_current(attempt)
    }

    pub(crate) fn settle(&self, attempt: Attempt, outcome: Outcome) -> Result<Credit, FlowError> {
        let mut pages = lock(&self.pages);
        let credit = if pages.is_current(attempt) { pages.end(attempt.ordinal, outcome) } else { None };
        drop(pages);
        let credit = credit.ok_or(FlowError::Superseded { attempt })?;
        self.observer.ended(attempt.ordinal, outcome);
        self.changed.notify_waiters();
        Ok(credit)
    }

    /// Voids the attempt, if it still counts; says whether it did.
    pub(crate) fn come_back(&self, attempt: Attempt, failed: bool) -> bool {
        let mut pages = lock(&self.pages);
        if !pages.is_current(attempt) {
            return false;
        }
        let closed = pages.closed;
        let Some(entry) = pages.open.get_mut(&attempt.ordinal) else { return false };
        let credit = entry.credit.take();
        entry.failures += u32::from(failed);
        let end = if entry.failures >= self.failures_limit {
            Some(Outcome::Quarantined)
        } else {
            closed.then_some(Outcome::Failed)
        };
        pages.counts.came_back += 1;
        match end {
            Some(outcome) => drop(pages.end(attempt.ordinal, outcome)),
            None => drop(pages.waiting.insert(attempt.ordinal)),
        }
        drop(pages);
        self.observer.came_back(attempt);
        if let Some(outcome) = end {
            self.observer.ended(attempt.ordinal, outcome);
        }
        // Last: whoever gets it finds the prompt waiting.
        drop(credit);
        self.changed.notify_waiters();
        true
    }
}

impl Pages {
    fn is_current(&self, attempt: Attempt) -> bool {
        let entry = self.open.get(&attempt.ordinal);
        entry.is_some_and(|entry| entry.attempt == attempt.number && entry.credit.is_some())
    }

    /// Counts the prompt out, and gives its credit if it was under way.
    fn end(&mut self, ordinal: PromptOrdinal, outcome: Outcome) -> Option<Credit> {
        let entry = self.open.remove(&ordinal)?;
        self.counts.ended[outcome as usize] += 1;
        self.check();
        entry.credit
    }

    fn counts(&self) -> Counts {
        Counts { open: self.open.len() as u64, waiting: self.waiting.len() as u64, ..self.counts }
    }

    fn check(&self) {
        let counts = self.counts();
        let holds = invariants::prompts_accounted(counts.drawn, counts.open, &counts.ended);
        invariants::check(Invariant::Flow3, holds);
    }
}

impl fmt::Debug for Book {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Book").field("failures_limit", &self.failures_limit).field("pages", &self.pages).finish()
    }
}
