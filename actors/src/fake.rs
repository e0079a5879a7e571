//! Engines without a model: they take time and give numbers that follow from the prompt. Tests fail them at will, and the
//! throughput benchmark times the system alone with them.

use crate::engine::{Cache, EngineError, Engines, Generate, Learn, Score, Verdict};
use crate::{Lane, Role};
use saddle_core::{Finish, PolicyVersion, Prompt, PromptOrdinal, Rollout, ScoredRollout};
use saddle_flow::{Snapshot, lock};
use saddle_training::UpdateMetrics;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long things take, and how large they are.
#[derive(Clone, Debug)]
pub struct Times {
    /// Responses that a generator works on at once.
    pub slots: usize,
    /// Shortest and longest response, in tokens.
    pub tokens: (usize, usize),
    /// One decoding step, however many responses it serves.
    pub decode_step: Duration,
    /// Scoring one response.
    pub score: Duration,
    /// One update.
    pub update: Duration,
}

/// Makes a stage fail, by panicking or by taking its time. Called on the stage's thread before each step.
pub type Mishap = Arc<dyn Fn(Role, usize) + Send + Sync>;

/// The engines.
#[derive(Clone)]
pub struct FakeEngines {
    times: Times,
    mishap: Option<Mishap>,
    evaluated: Arc<Mutex<Vec<PolicyVersion>>>,
}

impl FakeEngines {
    /// Engines that never fail.
    #[must_use]
    pub fn new(times: Times) -> Self {
        Self { times, mishap: None, evaluated: Arc::default() }
    }

    /// Engines that fail as `mishap` does.
    #[must_use]
    pub fn failing(times: Times, mishap: Mishap) -> Self {
        Self { mishap: Some(mishap), ..Self::new(times) }
    }

    /// The versions that were examined so far, in order.
    #[must_use]
    pub fn evaluated(&self) -> Vec<PolicyVersion> {
        lock(&self.evaluated).clone()
    }
}

/// A number that follows from a prompt's place alone.
fn scramble(ordinal: PromptOrdinal) -> u64 {
    let mut state = ordinal.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
    for _ in 0..3 {
        state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    }
    state ^ (state >> 31)
}

impl Engines for FakeEngines {
    /// Weights are as good as their version.
    type Weights = ();
    type Generator = FakeGenerator;
    type Scorer = FakeScorer;
    type Learner = FakeLearner;

    fn prompt(&self, ordinal: PromptOrdinal) -> Prompt {
        Prompt { ordinal, tokens: vec![1; 8], kind: None }
    }

    fn generator(&self) -> Result<FakeGenerator, EngineError> {
        Ok(FakeGenerator {
            times: self.times.clone(),
            version: PolicyVersion(0),
            rows: VecDeque::new(),
            pace: Pace::default(),
        })
    }

    fn scorer(&self, lane: Lane) -> Result<FakeScorer, EngineError> {
        Ok(FakeScorer { lane, times: self.times.clone(), pace: Pace::default() })
    }

    fn learner(&self, _version: PolicyVersion) -> Result<FakeLearner, EngineError> {
        Ok(FakeLearner { update: self.times.update, pace: Pace::default() })
    }

    fn can_remake_learner(&self) -> bool {
        true
    }

    fn evaluate(&self, version: PolicyVersion, (): &()) -> Result<(), EngineError> {
        lock(&self.evaluated).push(version);
        Ok(())
    }

    fn size_bytes((): &()) -> usize {
        0
    }

    fn before_step(&self, role: Role, index: usize) {
        if let Some(mishap) = &self.mishap {
            mishap(role, index);
        }
    }
}

/// Samples nothing, for as long as it takes.
#[derive(Debug)]
pub struct FakeGenerator {
    times: Times,
    version: PolicyVersion,
    /// Responses under way with their final lengths.
    rows: VecDeque<(Rollout, usize)>,
    pace: Pace,
}

impl Generate<()> for FakeGenerator {
    fn free(&self) -> usize {
        self.times.slots - self.rows.len()
    }

    fn load(&mut self, weights: &Snapshot<PolicyVersion, ()>, _cache: Cache) -> Result<(), EngineError> {
        self.version = weights.version;
        Ok(())
    }

    fn advance(&mut self, prompts: Vec<Prompt>) -> Result<Vec<Rollout>, EngineError> {
        let (shortest, longest) = self.times.tokens;
        for prompt in prompts {
            let length = shortest + (scramble(prompt.ordinal) % (longest - shortest + 1) as u64) as usize;
            let rollout = Rollout { prompt, tokens: vec![], log_probs: vec![], versions: vec![], finish: Finish::Stop };
            self.rows.push_back((rollout, length));
        }
        self.pace.wait(self.times.decode_step);
        let mut ended = Vec::new();
        for (mut rollout, length) in std::mem::take(&mut self.rows) {
            rollout.tokens.push(2);
            rollout.log_probs.push(-1.0);
            rollout.versions.push(self.version);
            if rollout.tokens.len() >= length { ended.push(rollout) } else { self.rows.push_back((rollout, length)) }
        }
        Ok(ended)
    }

    fn evict(&mut self, ordinal: PromptOrdinal) -> Result<(), EngineError> {
        self.rows.retain(|(rollout, _)| rollout.prompt.ordinal != ordinal);
        Ok(())
    }
}

/// Scores by the prompt's place.
#[derive(Debug)]
pub struct FakeScorer {
    lane: Lane,
    times: Times,
    pace: Pace,
}

impl Score for FakeScorer {
    fn score(&mut self, rollouts: &[Arc<Rollout>]) -> Result<Vec<Verdict>, EngineError> {
        self.pace.wait(self.times.score * u32::try_from(rollouts.len()).unwrap_or(u32::MAX));
        let whole = |rollout: &Rollout| (scramble(rollout.prompt.ordinal) % 2001) as f32 / 1000.0 - 1.0;
        let verdict = |rollout: &Arc<Rollout>| {
            if self.lane == Lane::Reference {
                Verdict::Tokens(vec![-1.0; rollout.tokens.len()])
            } else {
                Verdict::Whole(whole(rollout))
            }
        };
        Ok(rollouts.iter().map(verdict).collect())
    }
}

/// Learns nothing, for as long as it takes.
#[derive(Debug)]
pub struct FakeLearner {
    update: Duration,
    pace: Pace,
}

impl Learn<()> for FakeLearner {
    fn update(&mut self, _rollouts: &[ScoredRollout], _lambdas: &[f64]) -> Result<UpdateMetrics, EngineError> {
        self.pace.wait(self.update);
        Ok(UpdateMetrics::default())
    }

    fn snapshot(&self) -> Result<(), EngineError> {
        Ok(())
    }
}

/// Waits that take as long as they should on average: by what the system oversleeps in one, the next is shorter.
#[derive(Debug, Default)]
struct Pace {
    overslept: Duration,
}

impl Pace {
    fn wait(&mut self, duration: Duration) {
        let wanted = duration.saturating_sub(self.overslept);
        self.overslept = self.overslept.saturating_sub(duration);
        if !wanted.is_zero() {
            let start = Instant::now();
            std::thread::sleep(wanted);
            self.overslept += start.elapsed().saturating_sub(wanted);
        }
        // A stall is not made up for later.
        self.overslept = self.overslept.min(duration);
    }
}
