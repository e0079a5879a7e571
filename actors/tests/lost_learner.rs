//! A learner that panics inside an update takes half-updated weights with it: the run ends and says so, and nothing is
//! learnt from twice.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use saddle_actors::engine::{EngineError, Engines, Learn};
use saddle_actors::fake::{FakeEngines, FakeLearner, Times};
use saddle_actors::{Lane, Plan, System, follow};
use saddle_core::{PolicyVersion, Prompt, PromptOrdinal, ScoredRollout};
use saddle_flow::Outcome;
use saddle_telemetry::Telemetry;
use saddle_training::UpdateMetrics;
use saddle_training::config::TrainConfig;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
/// The update at which the learner is lost.
const LOST_AT: u64 = 3;

/// Engines with one learner, which is not made again: as with models.
struct OneLearner {
    engines: FakeEngines,
    given: AtomicBool,
}

struct Mortal {
    learner: FakeLearner,
    updates: u64,
}

impl Learn<()> for Mortal {
    fn update(&mut self, rollouts: &[ScoredRollout], lambdas: &[f64]) -> Result<UpdateMetrics, EngineError> {
        self.updates += 1;
        if self.updates == LOST_AT {
            resume_unwind(Box::new("out of memory"));
        }
        self.learner.update(rollouts, lambdas)
    }

    fn snapshot(&self) -> Result<(), EngineError> {
        Ok(())
    }
}

impl Engines for OneLearner {
    type Weights = ();
    type Generator = <FakeEngines as Engines>::Generator;
    type Scorer = <FakeEngines as Engines>::Scorer;
    type Learner = Mortal;

    fn prompt(&self, ordinal: PromptOrdinal) -> Prompt {
        self.engines.prompt(ordinal)
    }

    fn generator(&self) -> Result<Self::Generator, EngineError> {
        self.engines.generator()
    }

    fn scorer(&self, lane: Lane) -> Result<Self::Scorer, EngineError> {
        self.engines.scorer(lane)
    }

    fn learner(&self, version: PolicyVersion) -> Result<Mortal, EngineError> {
        if self.given.swap(true, Ordering::Relaxed) {
            return Err(EngineError::Fatal(format!("the weights of {version} are lost")));
        }
        Ok(Mortal { learner: self.engines.learner(version)?, updates: 0 })
    }

    fn size_bytes((): &()) -> usize {
        0
    }
}

#[test]
fn a_learner_lost_inside_an_update_ends_the_run_with_its_reason() {
    let recipe = r#"
        policy.from = "p"
        reward_model.from = "r"
        constraints = {}
        prompts.train = []
        ppo = { batch_rollouts = 4, updates = 10 }
    "#;
    let config: TrainConfig = toml::from_str(recipe).unwrap();
    let quick = Duration::from_micros(100);
    let times = Times { slots: 4, tokens: (1, 6), decode_step: quick, score: quick, update: quick };
    let engines = OneLearner { engines: FakeEngines::new(times), given: AtomicBool::new(false) };
    let system =
        System::start(Plan::from(&config), engines, Vec::new(), Arc::new(Telemetry::new("test").unwrap())).unwrap();
    let mut versions = Vec::new();
    let followed = follow(&system, Instant::now() + PATIENCE, |_, update| versions.push(update.version.0));
    assert_eq!(&*followed.unwrap_err(), "learner-0: the weights of v2 are lost");
    assert_eq!(versions, (1..LOST_AT).collect::<Vec<_>>());
    let report = system.observe();
    let remains = system.finish(PATIENCE);
    assert!(remains.learner.is_none());
    // The batch that was lost had been settled: nobody can learn from it again.
    assert_eq!(remains.counts.ended(Outcome::Trained), 4 * LOST_AT);
    if let Ok(report) = report {
        assert!(report.failures.iter().any(|failure| failure.reason.contains("panicked: out of memory")), "{report:?}");
    }
}
