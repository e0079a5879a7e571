//! What travels: groups of items, each with the ticket of its prompt.
//!
//! With η = 0 a group is the whole batch, so that every stage computes on what the synchronous schedule computes on. Else
//! it is what happens to be ready together.

use crate::Lane;
use crate::engine::Verdict;
use saddle_core::{PolicyVersion, Prompt, Rollout, ScoredRollout};
use saddle_flow::{Cargo, FlowError, HeldTickets, Sender, Snapshot, Stage, Ticket};
use saddle_training::{DualStep, UpdateMetrics};
use std::sync::Arc;

/// Something made from a prompt.
pub(crate) trait Load: Send {
    fn size_bytes(&self) -> usize;
}

impl Load for Prompt {
    fn size_bytes(&self) -> usize {
        size_of_val(self.tokens.as_slice())
    }
}

impl Load for Rollout {
    fn size_bytes(&self) -> usize {
        let Self { prompt, tokens, log_probs, versions, .. } = self;
        let columns = size_of_val(tokens.as_slice()) + size_of_val(log_probs.as_slice());
        prompt.size_bytes() + columns + size_of_val(versions.as_slice())
    }
}

/// Lanes share the rollout; each counts it whole, for an edge does not know what lies on the others.
impl Load for Arc<Rollout> {
    fn size_bytes(&self) -> usize {
        Rollout::size_bytes(self)
    }
}

/// A response with what one lane says of it.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) rollout: Arc<Rollout>,
    pub(crate) lane: Lane,
    pub(crate) verdict: Verdict,
}

impl Load for Judged {
    fn size_bytes(&self) -> usize {
        self.rollout.size_bytes()
    }
}

impl Load for ScoredRollout {
    fn size_bytes(&self) -> usize {
        self.rollout.size_bytes()
    }
}

/// A load with the ticket of its prompt.
#[derive(Debug)]
pub(crate) struct Item<T> {
    pub(crate) ticket: Ticket,
    pub(crate) load: T,
}

/// Items that travel together.
#[derive(Debug)]
pub(crate) struct Group<T>(pub(crate) Vec<Item<T>>);

impl<T: Load> Cargo for Group<T> {
    fn size_bytes(&self) -> usize {
        self.0.iter().map(|item| item.load.size_bytes()).sum()
    }

    fn pass_to(&mut self, held: Option<&HeldTickets>) {
        self.0.iter_mut().for_each(|item| item.ticket.pass_to(held));
    }
}

impl<T> Group<T> {
    /// Hands every prompt back without blame.
    pub(crate) fn give_back(self) {
        self.0.into_iter().for_each(|item| item.ticket.give_back());
    }
}

/// Sends a group. What could not be sent is not to blame for it.
pub(crate) fn send<T: Load>(sender: &Sender<Group<T>>, items: Vec<Item<T>>, stage: &Stage) -> Result<(), FlowError> {
    sender.send(Group(items), stage).map_err(|unsent| {
        unsent.item.give_back();
        unsent.error
    })
}

/// What the λ controller hears, in order: all costs that a batch was scored with come before the step that follows it.
#[derive(Debug)]
pub(crate) enum CostReport {
    /// Costs of one constraint, scored while the weights of `version` were the newest.
    Scored { constraint: usize, version: PolicyVersion, costs: Vec<f32> },
    /// The learner asks for a step.
    Step(StepRequest),
}

/// The learner is about to update the weights of `version` with a batch that is so many versions old on average.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepRequest {
    pub(crate) version: PolicyVersion,
    pub(crate) delay_versions: f64,
}

impl Cargo for CostReport {
    fn size_bytes(&self) -> usize {
        match self {
            Self::Scored { costs, .. } => size_of_val(costs.as_slice()),
            Self::Step(_) => 0,
        }
    }
}

/// An update that was made and published.
#[derive(Clone, Debug)]
pub struct Update {
    /// The version that it made.
    pub version: PolicyVersion,
    /// What it learnt from, in the order of the prompts.
    pub batch: Arc<Vec<ScoredRollout>>,
    /// What each constraint's step went by, in the order of the constraints.
    pub constraints: Vec<DualStep>,
    /// What the learner tells.
    pub metrics: UpdateMetrics,
    /// How long the update took, its waits excluded.
    pub learn_seconds: f64,
}

impl Cargo for Update {
    fn size_bytes(&self) -> usize {
        self.batch.iter().map(Load::size_bytes).sum()
    }
}

/// Weights that are to be examined.
#[derive(Debug)]
pub(crate) struct Published<W>(pub(crate) Snapshot<PolicyVersion, W>);

/// Shared with whoever samples by them: they take no memory of their own.
impl<W: Send + Sync> Cargo for Published<W> {
    fn size_bytes(&self) -> usize {
        0
    }
}
