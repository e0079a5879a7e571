//! A generator: answers prompts, as many at a time as its engine takes, and sends each answer to every lane of scorers.
//!
//! It takes newer weights between two tokens, or between responses (`schedule.weights`); every token carries the version
//! that it was sampled under. With η = 0 it answers a batch whole and sends it as one group.

use crate::engine::{Cache, EngineError, Engines, Generate};
use crate::meters::GeneratorMeters;
use crate::shared::{Next, Run, StageError, Work};
use crate::work::{Group, Item, send};
use saddle_core::{PolicyVersion, Prompt, PromptOrdinal, Rollout};
use saddle_flow::invariants::{self, Invariant};
use saddle_flow::{FlowError, Outcome, Receiver, Sender, Snapshot, Stage, Ticket};
use saddle_training::config::{WeightsTaking, seconds};
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

pub(crate) struct Generator<E: Engines> {
    run: Arc<Run<E>>,
    input: Receiver<Group<Prompt>>,
    lanes: Vec<Sender<Group<Arc<Rollout>>>>,
    engine: E::Generator,
    weights: Snapshot<PolicyVersion, E::Weights>,
    meters: GeneratorMeters,
    queue: VecDeque<Item<Prompt>>,
    /// Prompts being answered, with the time at which each is given up.
    answering: BTreeMap<PromptOrdinal, (Ticket, Instant)>,
    finished: Vec<Item<Arc<Rollout>>>,
}

impl<E: Engines> Generator<E> {
    pub(crate) fn new(
        run: Arc<Run<E>>,
        index: usize,
        input: Receiver<Group<Prompt>>,
        lanes: Vec<Sender<Group<Arc<Rollout>>>>,
    ) -> Result<Self, EngineError> {
        let mut engine = run.engines.generator()?;
        let weights = run.weights.newest();
        engine.load(&weights, Cache::Keep)?;
        let meters = run.meters.generator(index, engine.free());
        let (queue, answering, finished) = Default::default();
        Ok(Self { run, input, lanes, engine, weights, meters, queue, answering, finished })
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.answering.is_empty()
    }

    /// Takes newer weights if now is the time.
    fn take_weights(&mut self, stage: &Stage) -> Result<(), EngineError> {
        let cache = match self.run.plan.schedule.weights {
            WeightsTaking::Drain if !self.answering.is_empty() => return Ok(()),
            WeightsTaking::Drain | WeightsTaking::ContinueKeep => Cache::Keep,
            WeightsTaking::ContinueRebuild => Cache::Rebuild,
        };
        if let Some(newer) = self.run.weights.newer_than(self.weights.version) {
            let advances = invariants::version_advances(self.weights.version, newer.version);
            invariants::check(Invariant::Stale2, advances);
            let start = stage.clock().now();
            self.engine.load(&newer, cache)?;
            self.run.meters.swapped(stage.clock().since(start));
            self.weights = newer;
        }
        Ok(())
    }

    /// Whether prompts wait until those under way are answered, so that the weights can change.
    fn drains(&self) -> bool {
        self.run.plan.schedule.weights == WeightsTaking::Drain
            && !self.answering.is_empty()
            && self.run.weights.version() > self.weights.version
    }

    /// Gets prompts: waits for one if there is nothing else to do. False once there will be none.
    fn take_in(&mut self, stage: &Stage) -> Result<bool, FlowError> {
        if self.is_idle() {
            match self.input.recv(stage)? {
                Some(group) => self.queue.extend(group.0),
                None => return Ok(false),
            }
        }
        while self.queue.len() < self.engine.free() && !self.drains() {
            let Some(group) = self.input.try_recv(stage) else { break };
            self.queue.extend(group.0);
        }
        self.queue.retain(|item| item.ticket.is_current());
        Ok(true)
    }

    /// Answers go on by a token.
    fn advance(&mut self, stage: &Stage) -> Result<(), StageError> {
        let places = if self.drains() { 0 } else { self.engine.free().min(self.queue.len()) };
        let deadline = stage.clock().now() + seconds(self.run.plan.edges.response_seconds);
        let mut prompts = Vec::with_capacity(places);
        for Item { ticket, load } in self.queue.drain(..places) {
            self.answering.insert(load.ordinal, (ticket, deadline));
            prompts.push(load);
        }
        let start = stage.clock().now();
        let rollouts = self.engine.advance(prompts)?;
        self.meters.stepped(stage.clock().since(start), self.answering.len());
        for rollout in rollouts {
            let ordinal = rollout.prompt.ordinal;
            let unknown =
                || EngineError::Failed(format!("the engine answered prompt {ordinal}, which it was not given"));
            let (ticket, _) = self.answering.remove(&ordinal).ok_or_else(unknown)?;
            if rollout.tokens.is_empty() {
                // A void ticket's prompt is somebody else's by now.
                drop(ticket.settle(Outcome::Failed));
                continue;
            }
            self.meters.finished(&rollout, self.run.weights.version());
            self.finished.push(Item { ticket, load: Arc::new(rollout) });
        }
        Ok(())
    }

    /// Gives up answers that take too long, or that nobody waits for any more.
    fn give_up(&mut self, now: Instant) -> Result<(), EngineError> {
        let gone = |(ticket, deadline): &(Ticket, Instant)| *deadline <= now || !ticket.is_current();
        let late: Vec<_> =
            self.answering.iter().filter(|(_, entry)| gone(entry)).map(|(&ordinal, _)| ordinal).collect();
        for ordinal in late {
            self.answering.remove(&ordinal);
            self.engine.evict(ordinal)?;
        }
        Ok(())
    }

    /// Sends finished answers down every lane.
    fn send(&mut self, stage: &Stage) -> Result<(), FlowError> {
        let whole = !self.run.plan.in_lockstep() || self.is_idle();
        if self.finished.is_empty() || !whole {
            return Ok(());
        }
        let mut finished = std::mem::take(&mut self.finished);
        finished.sort_by_key(|item| item.load.prompt.ordinal);
        let ways = NonZeroUsize::new(self.lanes.len()).unwrap_or(NonZeroUsize::MIN);
        let mut groups: Vec<Vec<Item<Arc<Rollout>>>> = self.lanes.iter().map(|_| Vec::new()).collect();
        for Item { ticket, load } in finished {
            for (group, ticket) in groups.iter_mut().zip(ticket.split(ways)) {
                group.push(Item { ticket, load: Arc::clone(&load) });
            }
        }
        self.lanes.iter().zip(groups).try_for_each(|(lane, group)| send(lane, group, stage))
    }
}

impl<E: Engines> Work for Generator<E> {
    fn step(&mut self, stage: &Stage) -> Result<Next, StageError> {
        if !self.take_in(stage)? {
            return Ok(Next::Done);
        }
        self.take_weights(stage)?;
        if !self.is_idle() {
            self.advance(stage)?;
        }
        self.give_up(stage.clock().now())?;
        self.send(stage)?;
        Ok(Next::Continue)
    }

    fn leave(&mut self) {
        self.queue.drain(..).for_each(|item| item.ticket.give_back());
        self.finished.drain(..).for_each(|item| item.ticket.give_back());
        std::mem::take(&mut self.answering).into_values().for_each(|(ticket, _)| ticket.give_back());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Harness;

    type Lanes = Vec<Receiver<Group<Arc<Rollout>>>>;

    /// A generator with `count` prompts before it.
    fn generator(
        harness: &Harness,
        count: usize,
    ) -> (Generator<crate::fake::FakeEngines>, Sender<Group<Prompt>>, Lanes) {
        let (prompts, input) = harness.edge();
        let (lanes, outputs) = (0..3).map(|_| harness.edge()).unzip();
        let generator = Generator::new(Arc::clone(&harness.run), 0, input, lanes).unwrap();
        prompts.send(Group(harness.draw(count)), &harness.stage()).unwrap();
        (generator, prompts, outputs)
    }

    #[test]
    fn tokens_carry_the_version_that_they_were_sampled_under_down_every_lane() {
        let harness = Harness::new(|_| ());
        let (mut generator, _prompts, lanes) = generator(&harness, 2);
        let stage = harness.stage();
        generator.step(&stage).unwrap();
        harness.run.weights.publish(PolicyVersion(1), ()).unwrap();
        generator.step(&stage).unwrap();
        for lane in &lanes {
            let answers = harness.taken(lane);
            assert_eq!(answers.len(), 2);
            answers.iter().for_each(|item| assert_eq!(item.load.versions, [PolicyVersion(0), PolicyVersion(1)]));
        }
    }

    #[test]
    fn an_answer_that_takes_too_long_is_given_up_and_its_prompt_comes_back() {
        let harness = Harness::new(|_| ());
        let (mut generator, _prompts, lanes) = generator(&harness, 1);
        let stage = harness.stage();
        generator.step(&stage).unwrap();
        harness.clock.advance(seconds(harness.run.plan.edges.response_seconds));
        generator.give_up(stage.clock().now()).unwrap();
        assert_eq!((harness.run.ledger.counts().waiting, harness.taken(&lanes[0]).len()), (1, 0));
    }

    #[test]
    fn told_to_leave_it_hands_its_prompts_back_without_blame() {
        let harness = Harness::new(|plan| plan.supervision.attempts = 1);
        let (mut generator, _prompts, _lanes) = generator(&harness, 2);
        generator.step(&harness.stage()).unwrap();
        generator.leave();
        let counts = harness.run.ledger.counts();
        assert_eq!((counts.waiting, counts.ended(Outcome::Quarantined)), (2, 0));
    }
}
