//! What a stage has in hand: the attempts it is working on, for the supervisor that replaces it when it hangs.

use crate::{Attempt, lock};
use std::sync::{Arc, Mutex};

/// The attempts that one stage holds tickets of. Tickets enter and leave by [`Ticket::pass_to`](crate::Ticket::pass_to),
/// which edges call for whatever they carry. Clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct HeldTickets(Arc<Mutex<Vec<Attempt>>>);

impl HeldTickets {
    /// The attempts in hand. A ticket that was split is here as often as its parts are.
    #[must_use]
    pub fn attempts(&self) -> Vec<Attempt> {
        lock(&self.0).clone()
    }

    pub(crate) fn put(&self, attempt: Attempt) {
        lock(&self.0).push(attempt);
    }

    pub(crate) fn take(&self, attempt: Attempt) {
        let mut held = lock(&self.0);
        if let Some(place) = held.iter().position(|&other| other == attempt) {
            held.swap_remove(place);
        }
    }
}
