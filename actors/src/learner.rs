//! The learner: gathers a batch, drops what is too old (STALE-1), updates, publishes, and lets the next prompts in.
//!
//! Batches are made of prompts in the order in which they were drawn, so a long response is waited for and not overtaken:
//! what is trained on does not favour short ones. With credits for η + 1 batches, a prompt is in one of the next η + 1, and
//! its rollout never too old; the drop is the guarantee.
//!
//! The order matters. The batch is settled first, so that nobody else can end its prompts; then comes the update; then its
//! weights are published, which is the moment that counts; then the program is told; then the batch is cleared away and its
//! credits go back. So with no batch pending the program has been told, or the stage that should have was lost before.

use crate::engine::{EngineError, Engines, Learn};
use crate::pending_batch::Settled;
use crate::shared::{Next, Run, StageError, Work};
use crate::work::{CostReport, Group, Item, Published, StepRequest, Update};
use saddle_core::{PolicyVersion, PromptOrdinal, ScoredRollout};
use saddle_flow::invariants::{self, Invariant};
use saddle_flow::{FlowError, Outcome, Receiver, Sender, Stage, lock};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long it waits for a rollout before it looks again whether the run drains or a prompt was lost.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) struct Learner<E: Engines> {
    run: Arc<Run<E>>,
    input: Receiver<Group<ScoredRollout>>,
    costs: Sender<CostReport>,
    updates: Sender<Update>,
    /// To the evaluator, if there is one.
    examined: Option<Sender<Published<E::Weights>>>,
    /// Rollouts that wait for their batch.
    held: BTreeMap<PromptOrdinal, Item<ScoredRollout>>,
    /// Time that it has waited without input.
    waited: Duration,
}

impl<E: Engines> Learner<E> {
    pub(crate) fn new(
        run: Arc<Run<E>>,
        input: Receiver<Group<ScoredRollout>>,
        costs: Sender<CostReport>,
        updates: Sender<Update>,
        examined: Option<Sender<Published<E::Weights>>>,
    ) -> Self {
        Self { run, input, costs, updates, examined, held: BTreeMap::new(), waited: Duration::ZERO }
    }

    /// Takes in rollouts. A long time without any is an error, however short each wait is.
    fn take_in(&mut self, stage: &Stage) -> Result<bool, FlowError> {
        match self.input.recv(&stage.with_patience(LOOK)) {
            Ok(Some(group)) => {
                // A void attempt must not take the place of the one that counts.
                let current = group.0.into_iter().filter(|item| item.ticket.is_current());
                self.held.extend(current.map(|item| (item.load.rollout.prompt.ordinal, item)));
                self.waited = Duration::ZERO;
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(FlowError::Deadline { at, .. }) => {
                let patience = stage.patience();
                self.waited += LOOK;
                if self.waited <= patience {
                    return Ok(true);
                }
                self.waited = Duration::ZERO;
                Err(FlowError::Deadline { at, patience })
            }
            Err(error) => Err(error),
        }
    }

    /// Drops what is void or too old.
    fn sift(&mut self, version: PolicyVersion) {
        let bound = self.run.plan.schedule.staleness as u64;
        let is_old = |item: &Item<_>| !invariants::staleness_within(version, oldest(&item.load, version), bound);
        let old: Vec<_> = self.held.iter().filter(|(_, item)| is_old(item)).map(|(&ordinal, _)| ordinal).collect();
        for item in old.iter().filter_map(|ordinal| self.held.remove(ordinal)) {
            // A void ticket's prompt is somebody else's by now.
            drop(item.ticket.settle(Outcome::DroppedStale));
        }
        self.held.retain(|_, item| item.ticket.is_current());
    }

    /// The batch for `version`, once it is whole.
    fn batch(&mut self, version: PolicyVersion) -> Option<Vec<Item<ScoredRollout>>> {
        let (plan, counts) = (&self.run.plan, self.run.ledger.counts());
        let size = plan.batch_rollouts;
        let everything = self.held.len() as u64 == counts.open;
        if self.held.is_empty() && self.run.drain.is_cancelled() {
            return None;
        }
        if plan.in_lockstep() {
            let drawn = counts.drawn == (version.0 + 1) * size as u64;
            return (drawn && everything).then(|| std::mem::take(&mut self.held).into_values().collect());
        }
        if self.held.len() < size {
            return None;
        }
        let next = self.run.ledger.unfinished(size);
        let whole = next.len() == size && next.iter().all(|ordinal| self.held.contains_key(ordinal));
        whole.then(|| next.iter().filter_map(|ordinal| self.held.remove(ordinal)).collect())
    }

    /// At the end of a drain, rollouts are left that make no batch.
    fn fail_the_rest(&mut self) {
        if self.run.drain.is_cancelled() && self.held.len() as u64 == self.run.ledger.counts().open {
            std::mem::take(&mut self.held).into_values().for_each(|item| drop(item.ticket.settle(Outcome::Failed)));
        }
    }

    /// Ends the prompts of a batch and keeps it as the pending one. Where one of them is void, the others go back.
    fn settle(&mut self, items: Vec<Item<ScoredRollout>>, version: PolicyVersion) -> Result<(), EngineError> {
        let few = self.run.plan.minimum_rollouts.max(1);
        if items.len() < few {
            return Err(EngineError::Fatal(format!(
                "update {}: {} rollouts are left of {}, and {few} are needed; lower prompts.max_tokens, or see why prompts failed",
                version.next().0,
                items.len(),
                self.run.plan.batch_rollouts
            )));
        }
        self.check(&items, version);
        let (tickets, rollouts): (Vec<_>, Vec<_>) = items.into_iter().map(|item| (item.ticket, item.load)).unzip();
        let lags: Vec<u64> = rollouts.iter().map(|each| version.0 - oldest(each, version).0).collect();
        let mut pending = lock(&self.run.pending);
        let Ok(credits) = self.run.ledger.settle_all(tickets, Outcome::Trained) else { return Ok(()) };
        let delay_versions = lags.iter().sum::<u64>() as f64 / lags.len() as f64;
        pending.batch = Some(Arc::new(Settled { version, rollouts: Arc::new(rollouts), delay_versions }));
        pending.credits = credits;
        drop(pending);
        lags.into_iter().for_each(|lag| self.run.meters.consumed(lag));
        Ok(())
    }

    /// STALE-1, and STALE-3 with η = 0.
    fn check(&self, items: &[Item<ScoredRollout>], version: PolicyVersion) {
        let bound = self.run.plan.schedule.staleness as u64;
        let fresh =
            |each: &Item<ScoredRollout>| invariants::staleness_within(version, oldest(&each.load, version), bound);
        invariants::check(Invariant::Stale1, items.iter().all(fresh));
        if self.run.plan.in_lockstep() {
            let ordinals: Vec<_> = items.iter().map(|item| item.load.rollout.prompt.ordinal).collect();
            let versions: Vec<_> = items.iter().flat_map(|item| &item.load.rollout.versions).copied().collect();
            let batch = self.run.plan.batch_rollouts as u64;
            let follows = invariants::follows_the_synchronous_schedule(version, batch, &ordinals, &versions);
            invariants::check(Invariant::Stale3, follows);
        }
    }

    /// Updates with the pending batch, and publishes.
    fn update(&mut self, settled: &Settled, stage: &Stage) -> Result<(), StageError> {
        let (run, version) = (&self.run, settled.version);
        self.costs
            .send(CostReport::Step(StepRequest { version, delay_versions: settled.delay_versions }), stage)
            .map_err(FlowError::from)?;
        let multipliers = run.multipliers.wait_newer(version.0, stage)?.value;
        let engine = lock(&run.pending).engine.take();
        let mut engine = engine.map_or_else(|| run.engines.learner(version), Ok)?;
        let start = stage.clock().now();
        let learnt = engine.update(&settled.rollouts, &multipliers.values())?;
        let learn_seconds = stage.clock().since(start).as_secs_f64();
        let start = stage.clock().now();
        let weights = engine.snapshot()?;
        run.meters.copied(stage.clock().since(start), E::size_bytes(&weights));
        if let Some(reason) = stage.cancel().reason() {
            // Replaced meanwhile: the update is the replacement's to make.
            return Err(FlowError::Cancelled { at: stage.name().into(), reason }.into());
        }
        run.weights.publish(version.next(), weights)?;
        lock(&run.pending).put_back(engine, version);
        let (batch, constraints) = (Arc::clone(&settled.rollouts), multipliers.steps.clone());
        let update = Update { version: version.next(), batch, constraints, metrics: learnt, learn_seconds };
        self.updates.send(update, stage).map_err(FlowError::from)?;
        if let Some(examined) = self.examined.as_ref().filter(|_| run.plan.is_examined(version.next())) {
            examined.send(Published(run.weights.newest()), stage).map_err(FlowError::from)?;
        }
        self.waited = Duration::ZERO;
        self.clear(version);
        Ok(())
    }

    fn clear(&self, version: PolicyVersion) {
        let credits = lock(&self.run.pending).clear(version);
        drop(credits);
    }
}

fn oldest(scored: &ScoredRollout, version: PolicyVersion) -> PolicyVersion {
    scored.rollout.oldest_version().unwrap_or(version)
}

impl<E: Engines> Work for Learner<E> {
    fn step(&mut self, stage: &Stage) -> Result<Next, StageError> {
        let version = self.run.weights.version();
        let settled = lock(&self.run.pending).batch.clone();
        if let Some(settled) = settled {
            if settled.version == version {
                self.update(&settled, stage)?;
            } else {
                // The stage that this one replaces has published after all.
                self.clear(settled.version);
            }
            return Ok(Next::Continue);
        }
        if self.run.is_over() {
            return Ok(Next::Done);
        }
        self.sift(version);
        match self.batch(version) {
            Some(items) => self.settle(items, version)?,
            None => {
                self.fail_the_rest();
                if !self.take_in(stage)? {
                    return Ok(Next::Done);
                }
            }
        }
        Ok(Next::Continue)
    }

    fn leave(&mut self) {
        std::mem::take(&mut self.held).into_values().for_each(|item| item.ticket.give_back());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Harness;
    use crate::shared::Multipliers;

    struct Bench {
        harness: Harness,
        learner: Learner<crate::fake::FakeEngines>,
        joined: Sender<Group<ScoredRollout>>,
        updates: Receiver<Update>,
        /// The other ends of edges that nobody looks at.
        _costs: Receiver<CostReport>,
    }

    fn bench() -> Bench {
        let harness = Harness::new(|_| ());
        let (joined, input) = harness.edge();
        let (costs_in, costs) = harness.edge();
        let (updates_in, updates) = harness.edge();
        let learner = Learner::new(Arc::clone(&harness.run), input, costs_in, updates_in, None);
        harness.run.multipliers.publish(1, Multipliers::default()).unwrap();
        Bench { harness, learner, joined, updates, _costs: costs }
    }

    #[test]
    fn a_batch_is_settled_learnt_from_and_published_and_its_credits_come_back() {
        let Bench { harness, mut learner, joined, updates, _costs } = bench();
        let (stage, run) = (harness.stage(), &harness.run);
        let mut items = harness.scored(2, PolicyVersion(0));
        let last = items.pop().unwrap();
        joined.send(Group(vec![last]), &stage).unwrap();
        learner.step(&stage).unwrap();
        learner.step(&stage).unwrap();
        assert_eq!(
            (run.ledger.counts().ended(Outcome::Trained), run.weights.version().0),
            (0, 0),
            "a prompt is missing"
        );
        joined.send(Group(items), &stage).unwrap();
        (0..3).for_each(|_| assert_eq!(learner.step(&stage).unwrap(), Next::Continue));
        assert_eq!((run.ledger.counts().ended(Outcome::Trained), run.weights.version().0), (2, 1));
        assert_eq!(run.credits.available(), run.credits.total());
        let ordinals = updates
            .try_recv(&stage)
            .unwrap()
            .batch
            .iter()
            .map(|each| each.rollout.prompt.ordinal.0)
            .collect::<Vec<_>>();
        assert_eq!(ordinals, [0, 1]);
    }

    #[test]
    fn a_rollout_that_is_too_old_is_dropped_and_counted() {
        let Bench { harness, mut learner, joined, updates: _updates, _costs } = bench();
        let stage = harness.stage();
        joined.send(Group(harness.scored(2, PolicyVersion(0))), &stage).unwrap();
        learner.step(&stage).unwrap();
        harness.run.weights.publish(PolicyVersion(2), ()).unwrap();
        learner.step(&stage).unwrap();
        assert_eq!(harness.run.ledger.counts().ended(Outcome::DroppedStale), 2);
    }

    #[test]
    fn it_loses_patience_after_so_long_without_input() {
        let Bench { harness, mut learner, joined: _joined, updates: _updates, _costs } = bench();
        let (stage, start) = (harness.stage(), harness.clock.now());
        let error = loop {
            if let Err(error) = learner.step(&stage) {
                break error;
            }
        };
        assert!(matches!(error, StageError::Flow(FlowError::Deadline { .. })), "{error}");
        let waited = harness.clock.now().duration_since(start);
        assert!(waited >= stage.patience() && waited < stage.patience() + Duration::from_secs(1), "{waited:?}");
    }
}
