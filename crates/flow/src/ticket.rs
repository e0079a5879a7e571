//! A ticket is one attempt at a prompt. Work carries it from stage to stage; whoever ends the prompt settles it.

use crate::ledger::Book;
use crate::{Credit, FlowError, HeldTickets, Outcome};
use saddle_core::{Prompt, PromptOrdinal};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// A prompt's place in the sequence, and which attempt at it this is, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt {
    /// The prompt.
    pub ordinal: PromptOrdinal,
    /// How often it has been handed out, this time included.
    pub number: u32,
}

impl fmt::Display for Attempt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.ordinal, self.number)
    }
}

/// A prompt with the ticket for this attempt at it.
#[derive(Debug)]
pub struct Drawn {
    /// The prompt.
    pub prompt: Prompt,
    /// The ticket, to travel with all that is made from the prompt.
    pub ticket: Ticket,
}

/// The right to end a prompt. Dropped unsettled, as a panic or a lost edge does, it counts a failure and sends the prompt
/// back to the source; the attempt is void from then on, and so are the other tickets of it.
#[derive(Debug)]
pub struct Ticket {
    book: Arc<Book>,
    attempt: Attempt,
    held: Option<HeldTickets>,
    /// Whether dropping it gives the attempt up.
    armed: bool,
}

impl Ticket {
    pub(crate) fn new(book: Arc<Book>, attempt: Attempt) -> Self {
        Self { book, attempt, held: None, armed: true }
    }

    /// What it is a ticket of.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// Whether the attempt still counts. A stage may skip work whose ticket does not.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.book.is_current(self.attempt)
    }

    /// Counts it among those that a stage holds, or among none while it is on an edge.
    pub fn pass_to(&mut self, held: Option<&HeldTickets>) {
        if let Some(former) = std::mem::replace(&mut self.held, held.cloned()) {
            former.take(self.attempt);
        }
        if let Some(held) = held {
            held.put(self.attempt);
        }
    }

    /// As many tickets of this attempt as the work has ways to go at once. Losing one voids them all; where the ways meet
    /// again, [`Ticket::merge`] makes them one.
    #[must_use]
    pub fn split(self, ways: NonZeroUsize) -> Vec<Self> {
        let another = |_| {
            let mut ticket = Self::new(Arc::clone(&self.book), self.attempt);
            ticket.pass_to(self.held.as_ref());
            ticket
        };
        let mut tickets: Vec<Self> = (1..ways.get()).map(another).collect();
        tickets.push(self);
        tickets
    }

    /// Takes in another ticket of this attempt. One of another attempt is dropped.
    pub fn merge(&mut self, mut other: Self) {
        other.armed = other.attempt != self.attempt;
    }

    /// Ends the prompt. The credit comes along: dropping it admits the next prompt, so a learner keeps it until the weights
    /// that it trained are published.
    ///
    /// # Errors
    /// [`FlowError::Superseded`] if the attempt is void; the caller's work is to be forgotten.
    pub fn settle(mut self, outcome: Outcome) -> Result<Credit, FlowError> {
        self.armed = false;
        self.book.settle(self.attempt, outcome)
    }

    /// Hands the prompt back to the source without a failure: the stage leaves and could not finish it.
    pub fn give_back(mut self) {
        self.armed = false;
        self.book.come_back(self.attempt, false);
    }

    pub(crate) fn belongs_to(&self, book: &Arc<Book>) -> bool {
        Arc::ptr_eq(&self.book, book)
    }

    pub(crate) fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pass_to(None);
        if self.armed {
            self.book.come_back(self.attempt, true);
        }
    }
}
