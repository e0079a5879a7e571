//! A scorer: what one lane says of responses. The reward, each cost and the reference log-probs are lanes that differ in
//! their engine only.
//!
//! With η = 0 it scores each group as it comes: the batch whole. Else it waits a moment for more, up to a number of tokens.
//! Costs are reported to the λ controller as soon as they are scored, before any filter (DUAL-3).

use crate::engine::{EngineError, Engines, Score, Verdict};
use crate::meters::ScorerMeters;
use crate::shared::{Next, Run, StageError, Work};
use crate::work::{CostReport, Group, Item, Judged, send};
use crate::{Lane, Role};
use saddle_core::Rollout;
use saddle_flow::invariants::{self, Invariant};
use saddle_flow::{FlowError, Receiver, Sender, Stage};
use saddle_training::config::seconds;
use std::sync::Arc;

pub(crate) struct Scorer<E: Engines> {
    run: Arc<Run<E>>,
    lane: Lane,
    engine: E::Scorer,
    meters: ScorerMeters,
    input: Receiver<Group<Arc<Rollout>>>,
    output: Sender<Group<Judged>>,
    costs: Sender<CostReport>,
}

impl<E: Engines> Scorer<E> {
    pub(crate) fn new(
        run: Arc<Run<E>>,
        lane: Lane,
        input: Receiver<Group<Arc<Rollout>>>,
        output: Sender<Group<Judged>>,
        costs: Sender<CostReport>,
    ) -> Result<Self, EngineError> {
        let engine = run.engines.scorer(lane)?;
        let meters = run.meters.scorer(&run.plan.name(Role::Scorer(lane)));
        Ok(Self { run, lane, engine, meters, input, output, costs })
    }

    /// The responses to score together; none once there will be none.
    fn gather(&self, stage: &Stage) -> Result<Option<Vec<Item<Arc<Rollout>>>>, FlowError> {
        let Some(Group(mut items)) = self.input.recv(stage)? else { return Ok(None) };
        if self.run.plan.in_lockstep() {
            return Ok(Some(items));
        }
        let tokens = |items: &[Item<Arc<Rollout>>]| -> usize {
            items.iter().map(|item| item.load.prompt.tokens.len() + item.load.tokens.len()).sum()
        };
        let flush = stage.clock().now() + seconds(self.run.plan.edges.flush_seconds);
        while tokens(&items) < self.run.plan.score_tokens {
            let patience = flush.saturating_duration_since(stage.clock().now());
            match self.input.recv(&stage.with_patience(patience)) {
                Ok(Some(group)) => items.extend(group.0),
                Ok(None) | Err(FlowError::Deadline { .. }) => break,
                Err(error) => {
                    Group(items).give_back();
                    return Err(error);
                }
            }
        }
        Ok(Some(items))
    }

    /// Tells the λ controller what was scored.
    fn report(&self, verdicts: &[Verdict], stage: &Stage) -> Result<(), FlowError> {
        let Lane::Cost(constraint) = self.lane else { return Ok(()) };
        let whole = |verdict: &Verdict| if let Verdict::Whole(cost) = verdict { Some(*cost) } else { None };
        let costs: Vec<f32> = verdicts.iter().filter_map(whole).collect();
        let all = invariants::costs_estimated_before_filters(verdicts.len() as u64, costs.len() as u64);
        invariants::check(Invariant::Dual3, all);
        let version = self.run.weights.version();
        Ok(self.costs.send(CostReport::Scored { constraint, version, costs }, stage)?)
    }
}

impl<E: Engines> Work for Scorer<E> {
    fn step(&mut self, stage: &Stage) -> Result<Next, StageError> {
        let Some(mut items) = self.gather(stage)? else { return Ok(Next::Done) };
        items.retain(|item| item.ticket.is_current());
        if items.is_empty() {
            return Ok(Next::Continue);
        }
        let rollouts: Vec<Arc<Rollout>> = items.iter().map(|item| Arc::clone(&item.load)).collect();
        let start = stage.clock().now();
        let verdicts = self.engine.score(&rollouts)?;
        self.meters.scored(stage.clock().since(start), rollouts.len());
        if verdicts.len() != items.len() {
            let (name, given, taken) = (self.run.plan.name(Role::Scorer(self.lane)), verdicts.len(), items.len());
            return Err(EngineError::Fatal(format!("{name} scorer: {given} verdicts on {taken} responses")).into());
        }
        if let Err(error) = self.report(&verdicts, stage) {
            Group(items).give_back();
            return Err(error.into());
        }
        let judged = items.into_iter().zip(verdicts).map(|(Item { ticket, load }, verdict)| {
            let load = Judged { rollout: load, lane: self.lane, verdict };
            Item { ticket, load }
        });
        send(&self.output, judged.collect(), stage)?;
        Ok(Next::Continue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Harness;
    use saddle_core::PolicyVersion;

    #[test]
    fn costs_are_reported_before_the_responses_go_on_and_void_ones_are_left_out() {
        let harness = Harness::new(|_| ());
        let (responses, input) = harness.edge();
        let (output, judged) = harness.edge();
        let (costs_in, costs) = harness.edge();
        let mut scorer = Scorer::new(Arc::clone(&harness.run), Lane::Cost(0), input, output, costs_in).unwrap();
        let stage = harness.stage();
        let items = harness.answered(3, PolicyVersion(0));
        let void = items[0].ticket.attempt();
        responses.send(Group(items), &stage).unwrap();
        // As the supervisor does with what a hung stage has in hand.
        harness.run.ledger.revoke(stage.held());
        scorer.step(&stage).unwrap();
        let CostReport::Scored { costs: reported, constraint: 0, .. } = costs.try_recv(&stage).unwrap() else {
            panic!("no costs were reported");
        };
        let judged = harness.taken(&judged);
        assert_eq!(reported.len(), judged.len());
        assert!(judged.iter().all(|item| item.load.lane == Lane::Cost(0) && item.ticket.is_current()), "{void:?}");
    }

    #[test]
    fn it_waits_a_moment_for_more_and_no_longer() {
        let harness = Harness::new(|_| ());
        let (responses, input) = harness.edge();
        let (output, judged) = harness.edge();
        let (costs, _costs) = harness.edge();
        let mut scorer = Scorer::new(Arc::clone(&harness.run), Lane::Reward, input, output, costs).unwrap();
        let stage = harness.stage();
        for item in harness.answered(2, PolicyVersion(0)) {
            responses.send(Group(vec![item]), &stage).unwrap();
        }
        let start = stage.clock().now();
        scorer.step(&stage).unwrap();
        assert_eq!(stage.clock().since(start), seconds(harness.run.plan.edges.flush_seconds));
        assert_eq!(harness.taken(&judged).len(), 2);
    }
}
