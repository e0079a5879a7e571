//! One actor alone: its work is driven step by step on the test's own thread, under a clock that only the test and waits turn. Nothing
//! sleeps, and what the other actors would do, the test does.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use crate::Plan;
use crate::engine::Generate;
use crate::fake::{FakeEngines, Times};
use crate::meters::Meters;
use crate::shared::Run;
use crate::work::{Group, Item};
use saddle_algorithms::dual::ConstraintConfig;
use saddle_core::{PolicyVersion, Prompt, PromptOrdinal, Rollout, ScoredRollout};
use saddle_flow::{Cancel, Cargo, Clock, ManualClock, Receiver, Sender, Stage, edge};
use saddle_telemetry::Telemetry;
use saddle_training::Dual;
use saddle_training::config::{EdgesSection, PlacementSection, ScheduleSection, SupervisionSection, seconds};
use std::sync::Arc;
use std::time::Duration;

/// A run of fake engines that take no time, and nobody at work in it.
pub(crate) struct Harness {
    pub(crate) run: Arc<Run<FakeEngines>>,
    pub(crate) clock: ManualClock,
}

impl Harness {
    /// Batches of two rollouts, η = 1, one constraint named `harm`; changed by `change`.
    pub(crate) fn new(change: impl FnOnce(&mut Plan)) -> Self {
        let mut plan = Plan {
            schedule: ScheduleSection { staleness: 1, ..ScheduleSection::default() },
            placement: PlacementSection::default(),
            edges: EdgesSection { items: 8, ..EdgesSection::default() },
            supervision: SupervisionSection::default(),
            constraints: vec!["harm".to_owned()],
            updates: 10,
            batch_rollouts: 2,
            minimum_rollouts: 1,
            score_tokens: 1000,
            evaluate_every_updates: 0,
        };
        change(&mut plan);
        let none = Duration::ZERO;
        let times = Times { slots: 4, tokens: (2, 2), decode_step: none, score: none, update: none };
        let meters = Arc::new(Meters::new(Arc::new(Telemetry::new("test").unwrap())));
        let duals = plan.constraints.iter().map(|name| Dual::new(name, &ConstraintConfig::default())).collect();
        let run = Arc::new(Run::new(plan, FakeEngines::new(times), duals, meters).unwrap());
        Self { run, clock: ManualClock::new() }
    }

    /// A stage under the harness's clock, with the plan's patience.
    pub(crate) fn stage(&self) -> Stage {
        let patience = seconds(self.run.plan.edges.patience_seconds);
        Stage::with_clock("stage-0", Cancel::new(), patience, Clock::Manual(self.clock.clone()))
    }

    /// An edge of the plan's size.
    pub(crate) fn edge<T: Cargo>(&self) -> (Sender<T>, Receiver<T>) {
        edge(self.run.plan.edge("one", "other"), self.run.meters.edge("one→other"))
    }

    /// The next prompts, drawn under credits.
    pub(crate) fn draw(&self, count: usize) -> Vec<Item<Prompt>> {
        let draw = |_| {
            let credit = self.run.credits.try_acquire().expect("a credit is free");
            let prompt =
                Prompt { ordinal: PromptOrdinal(self.run.ledger.counts().drawn), tokens: vec![1; 8], kind: None };
            let drawn = self.run.ledger.draw(prompt, credit).unwrap();
            Item { ticket: drawn.ticket, load: drawn.prompt }
        };
        (0..count).map(draw).collect()
    }

    /// Drawn prompts with answers of two tokens, sampled by the weights of `version`.
    pub(crate) fn answered(&self, count: usize, version: PolicyVersion) -> Vec<Item<Arc<Rollout>>> {
        let mut generator = crate::engine::Engines::generator(&self.run.engines).unwrap();
        let weights = saddle_flow::Snapshot { version, value: Arc::new(()) };
        generator.load(&weights, crate::engine::Cache::Keep).unwrap();
        let (tickets, prompts): (Vec<_>, Vec<_>) =
            self.draw(count).into_iter().map(|item| (item.ticket, item.load)).unzip();
        generator.advance(prompts).unwrap();
        let rollouts = generator.advance(Vec::new()).unwrap();
        tickets.into_iter().zip(rollouts).map(|(ticket, rollout)| Item { ticket, load: Arc::new(rollout) }).collect()
    }

    /// The same with scores.
    pub(crate) fn scored(&self, count: usize, version: PolicyVersion) -> Vec<Item<ScoredRollout>> {
        let costs = vec![0.5; self.run.plan.constraints.len()];
        let score = |Item { ticket, load }: Item<Arc<Rollout>>| {
            let reference_log_probs = vec![-1.0; load.tokens.len()];
            let rollout = Arc::unwrap_or_clone(load);
            Item { ticket, load: ScoredRollout { rollout, reward: 1.0, costs: costs.clone(), reference_log_probs } }
        };
        self.answered(count, version).into_iter().map(score).collect()
    }

    /// Everything that lies on an edge.
    pub(crate) fn taken<T>(&self, receiver: &Receiver<Group<T>>) -> Vec<Item<T>>
    where
        Group<T>: Cargo,
    {
        std::iter::from_fn(|| receiver.try_recv(&self.stage())).flat_map(|group| group.0).collect()
    }
}
