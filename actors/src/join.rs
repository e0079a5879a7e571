//! The join: a response with all its scores goes on to the learner; one whose scores are not there in time is given up and
//! tried again.

use crate::engine::{EngineError, Engines, Verdict};
use crate::shared::{Next, Run, StageError, Work};
use crate::work::{Group, Item, Judged, send};
use crate::{Lane, Role};
use saddle_core::ScoredRollout;
use saddle_flow::{Attempt, FlowError, Join, Receiver, Sender, Stage};
use saddle_training::config::seconds;
use std::num::NonZeroUsize;
use std::sync::Arc;

pub(crate) struct Joiner<E: Engines> {
    run: Arc<Run<E>>,
    join: Join<Attempt, Item<Judged>>,
    input: Receiver<Group<Judged>>,
    output: Sender<Group<ScoredRollout>>,
}

impl<E: Engines> Joiner<E> {
    pub(crate) fn new(run: Arc<Run<E>>, input: Receiver<Group<Judged>>, output: Sender<Group<ScoredRollout>>) -> Self {
        let lanes = run.plan.lanes().map(|lane| run.plan.name(Role::Scorer(lane))).collect();
        // Each open attempt has a credit, or is void and soon expires.
        let capacity = NonZeroUsize::new(4 * run.credits.total()).unwrap_or(NonZeroUsize::MIN);
        let join = Join::new(lanes, seconds(run.plan.edges.join_seconds), capacity);
        Self { run, join, input, output }
    }

    /// The parts of one response, in the order of the lanes, as one.
    fn whole(parts: Vec<Item<Judged>>) -> Result<Item<ScoredRollout>, EngineError> {
        let (mut ticket, mut rollout) = (None, None);
        let (mut reward, mut costs, mut reference_log_probs) = (f32::NAN, Vec::with_capacity(parts.len()), Vec::new());
        for Item { ticket: part, load: Judged { rollout: shared, lane, verdict } } in parts {
            match (lane, verdict) {
                (Lane::Reward, Verdict::Whole(score)) => reward = score,
                (Lane::Cost(_), Verdict::Whole(score)) => costs.push(score),
                (Lane::Reference, Verdict::Tokens(log_probs)) if log_probs.len() == shared.tokens.len() => {
                    reference_log_probs = log_probs;
                }
                (lane, verdict) => return Err(EngineError::Fatal(format!("{lane:?} cannot say {verdict:?}"))),
            }
            match &mut ticket {
                None => ticket = Some(part),
                Some(ticket) => ticket.merge(part),
            }
            rollout = Some(shared);
        }
        let (Some(ticket), Some(rollout)) = (ticket, rollout) else {
            return Err(EngineError::Fatal("a response without a lane".to_owned()));
        };
        let load = ScoredRollout { rollout: Arc::unwrap_or_clone(rollout), reward, costs, reference_log_probs };
        Ok(Item { ticket, load })
    }
}

impl<E: Engines> Work for Joiner<E> {
    fn step(&mut self, stage: &Stage) -> Result<Next, StageError> {
        let now = stage.clock().now();
        let until = self.join.next_deadline().map(|deadline| deadline.saturating_duration_since(now));
        let patience = until.map_or(stage.patience(), |until| until.min(stage.patience()));
        let items = match self.input.recv(&stage.with_patience(patience)) {
            Ok(Some(group)) => group.0,
            Ok(None) => return Ok(Next::Done),
            Err(FlowError::Deadline { .. }) if until.is_some() => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let now = stage.clock().now();
        // Dropped tickets send their prompts back.
        drop(self.join.expire(now));
        let mut complete = Vec::new();
        for item in items {
            let (attempt, lane) = (item.ticket.attempt(), item.load.lane.place(self.run.plan.constraints.len()));
            if !item.ticket.is_current() {
                continue;
            }
            if let Ok(Some(parts)) = self.join.offer(attempt, lane, item, now) {
                let whole = Self::whole(parts)?;
                self.run.meters.queued(&whole.load.rollout, self.run.weights.version());
                complete.push(whole);
            }
        }
        if !complete.is_empty() {
            send(&self.output, complete, stage)?;
        }
        Ok(Next::Continue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Harness;
    use saddle_core::PolicyVersion;

    fn judged(harness: &Harness, lanes: &[Lane]) -> Vec<Item<Judged>> {
        let Item { ticket, load } = harness.answered(1, PolicyVersion(0)).remove(0);
        let verdict = |lane| match lane {
            Lane::Reference => Verdict::Tokens(vec![-1.0; 2]),
            lane => Verdict::Whole(lane.place(1) as f32),
        };
        let tickets = ticket.split(NonZeroUsize::new(lanes.len()).unwrap());
        let part = |(ticket, &lane)| Item {
            ticket,
            load: Judged { rollout: Arc::clone(&load), lane, verdict: verdict(lane) },
        };
        tickets.into_iter().zip(lanes).map(part).collect()
    }

    #[test]
    fn a_response_goes_on_with_all_its_scores_and_one_that_lacks_some_is_tried_again() {
        let harness = Harness::new(|_| ());
        let (parts, input) = harness.edge();
        let (output, whole) = harness.edge();
        let mut joiner = Joiner::new(Arc::clone(&harness.run), input, output);
        let stage = harness.stage();
        parts.send(Group(judged(&harness, &[Lane::Reference, Lane::Reward, Lane::Cost(0)])), &stage).unwrap();
        parts.send(Group(judged(&harness, &[Lane::Reward, Lane::Cost(0)])), &stage).unwrap();
        joiner.step(&stage).unwrap();
        joiner.step(&stage).unwrap();
        let whole = harness.taken(&whole);
        assert_eq!((whole.len(), whole[0].load.reward, whole[0].load.costs.as_slice()), (1, 0.0, &[1.0][..]));
        // Nothing comes until the deadline of the other one.
        let start = stage.clock().now();
        joiner.step(&stage).unwrap();
        assert_eq!(stage.clock().since(start), seconds(harness.run.plan.edges.join_seconds));
        assert_eq!(harness.run.ledger.counts().waiting, 1);
    }
}
