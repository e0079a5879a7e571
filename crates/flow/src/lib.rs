//! The data plane of the asynchronous pipeline: how work moves between stages, and what keeps it honest while it moves.
//!
//! | concept | what it is |
//! |---|---|
//! | [`edge()`] | a queue between two stages, bounded in items and bytes, named by its ends |
//! | [`Credits`] | permits that bound how many prompts are under way, and so how stale a rollout can get |
//! | [`Ledger`] | every prompt drawn, until it ends exactly once; a [`Ticket`] is one attempt at it |
//! | [`Join`] | parts of one rollout from several scorers, brought together under a deadline |
//! | [`Latest`] | a value of which only the newest counts: weights, multipliers, the pause flag |
//! | [`Stage`] | what every wait asks for: cancellation, patience, a pulse, and what is in hand |
//! | [`invariants`] | the numbered rules, one predicate each |
//!
//! Every wait has a deadline and can be cancelled, and each comes in two forms: the plain one parks the calling thread,
//! the `_async` one suspends a task of a tokio runtime. So any edge joins threads to threads, tasks to threads and
//! threads to tasks. A stage reads:
//!
//! ```
//! # use saddle_flow::{Cargo, FlowError, Receiver, Sender, Stage};
//! fn run<A: Cargo, B: Cargo>(
//!     input: &Receiver<A>, output: &Sender<B>, stage: &Stage, step: impl Fn(A) -> B,
//! ) -> Result<(), FlowError> {
//!     while let Some(work) = input.recv(stage)? {
//!         output.send(step(work), stage)?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! Nothing is lost by the `?`, by a panic in `step` or by a stage that is replaced because it hangs: work carries its
//! [`Ticket`], and a ticket that is dropped sends its prompt back to the source.
//!
//! The crate knows no tensors, no actors and no metrics library. It tells what it saw through plain counters and small
//! observers.

mod cancel;
mod clock;
mod credits;
mod edge;
mod edge_stats;
mod error;
mod held_tickets;
pub mod invariants;
mod join;
mod latest;
mod ledger;
mod pulse;
mod stage;
mod ticket;
mod waiting;

pub use cancel::{Cancel, Reason};
pub use clock::{Clock, ManualClock};
pub use credits::{Credit, Credits};
pub use edge::{Cargo, EdgeSpec, Receiver, Sender, Unsent, edge};
pub use edge_stats::{EdgeCounts, EdgeObserver, EdgeStats};
pub use error::FlowError;
pub use held_tickets::HeldTickets;
pub use join::{Expired, Join, Refused};
pub use latest::{Latest, Snapshot};
pub use ledger::{Counts, Ledger, LedgerObserver, Outcome};
pub use pulse::{Activity, Pulse};
pub use stage::Stage;
pub use ticket::{Attempt, Drawn, Ticket};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks state that is whole after every statement: nothing of a caller's runs under these locks, so what a panicking
/// thread leaves behind can be used.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
