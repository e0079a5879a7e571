//! The real engines: the models of `saddle-lm`, and the learner of `saddle-training`.
//!
//! Frozen models are shared between threads, each of which has a view of its own on the same memory; on another device a
//! stage has a copy. Published weights are shared in the same way.
//!
//! On a GPU each stage has a stream of its own ([`streams`]). The rules that make this sound: a stream starts after all that
//! its device was given before, so that it finds the models whole; the learner waits for its stream before it hands a
//! snapshot over; a generator waits for its own before it lets go of one. What else passes between stages are numbers on the
//! host, and to bring them there waits for their stream.

use crate::engine::{Cache, EngineError, Engines, Generate, Learn, Score, Verdict};
use crate::{Lane, Role};
use saddle_core::{PolicyVersion, Prompt, PromptOrdinal, Rollout, ScoredRollout};
use saddle_flow::{Snapshot, lock};
use saddle_libtorch::{LibtorchError, streams};
use saddle_lm::{
    DecodeSettings, Decoder, DecoderHead, DecodingBatch, DecodingWeights, LmError, Normalizer, Policy, ScoreModel,
};
use saddle_training::config::{StagePlacement, TrainConfig};
use saddle_training::{
    Judges, Learner, Scorer, TrainingError, UpdateMetrics, normalised, reference_log_probs, score_rollouts,
};
use std::sync::{Arc, Mutex};
use tch::Device;

/// Gives the prompt at a place of the endless sequence.
pub type Prompts = Box<dyn Fn(PromptOrdinal) -> Prompt + Send + Sync>;

/// Examines the policy of a version.
pub type Examine = Box<dyn Fn(PolicyVersion, &Policy) + Send + Sync>;

/// A frozen model that threads take views of. A tensor may move to another thread, but not be used by two at once; under
/// the lock, one thread at a time makes a handle of its own to memory that nobody writes.
#[derive(Debug)]
pub struct Frozen<M>(Mutex<M>);

impl<M> Frozen<M> {
    fn new(model: M) -> Self {
        Self(Mutex::new(model))
    }
}

impl<H: DecoderHead> Frozen<Decoder<H>> {
    /// A model of this thread's own over the same weights.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn take_view(&self) -> Result<Decoder<H>, LmError> {
        let device = lock(&self.0).device();
        self.on(device)
    }

    fn on(&self, device: Device) -> Result<Decoder<H>, LmError> {
        let model = lock(&self.0);
        let kind = model.parameters().base().unwrap_or_else(|| model.parameters()).flat().kind();
        model.kept(kind, device)
    }
}

/// The engines of a training run.
pub struct ModelEngines {
    config: TrainConfig,
    settings: DecodeSettings,
    /// Longest prompt and response together, in tokens.
    capacity: usize,
    prompts: Prompts,
    examine: Examine,
    reference: Frozen<Policy>,
    /// The reward's, then each cost's.
    scorers: Vec<(Frozen<ScoreModel>, Option<Normalizer>)>,
    /// Until it is asked for.
    learner: Mutex<Option<Learner>>,
}

impl ModelEngines {
    /// The engines of a valid `config`. Prompts are at most `prompts.max_tokens` long.
    #[must_use]
    pub fn new(
        config: TrainConfig,
        learner: Learner,
        judges: Judges,
        settings: DecodeSettings,
        prompts: Prompts,
        examine: Examine,
    ) -> Self {
        let Judges { reference, reward, costs } = judges;
        Self {
            capacity: config.prompts.max_tokens + settings.max_new_tokens,
            settings,
            prompts,
            examine,
            reference: Frozen::new(reference),
            scorers: std::iter::once(reward)
                .chain(costs)
                .map(|Scorer { model, normalizer, .. }| (Frozen::new(model), normalizer))
                .collect(),
            learner: Mutex::new(Some(learner)),
            config,
        }
    }

    fn placement(&self, role: Role) -> Option<&StagePlacement> {
        let placement = &self.config.placement;
        match role {
            Role::Generator => Some(&placement.generator),
            Role::Scorer(Lane::Reward) => Some(&placement.reward),
            Role::Scorer(Lane::Cost(_)) => Some(&placement.cost),
            Role::Scorer(Lane::Reference) | Role::Evaluator => Some(&placement.reference),
            Role::Learner => Some(&placement.learner),
            Role::Source | Role::Join | Role::Multiplier => None,
        }
    }

    fn device(&self, role: Role) -> Result<Device, EngineError> {
        let own = self.placement(role).and_then(|placement| placement.device.as_ref());
        let name = own.unwrap_or(&self.config.run.device);
        saddle_libtorch::device(name).map_err(|error| EngineError::Fatal(error.to_string()))
    }
}

impl Engines for ModelEngines {
    type Weights = Frozen<Policy>;
    type Generator = ModelGenerator;
    type Scorer = ModelScorer;
    type Learner = Learner;

    fn prompt(&self, ordinal: PromptOrdinal) -> Prompt {
        (self.prompts)(ordinal)
    }

    fn generator(&self) -> Result<ModelGenerator, EngineError> {
        let device = self.device(Role::Generator)?;
        let (settings, rows) = (self.settings.clone(), self.config.generation.rows);
        Ok(ModelGenerator { settings, rows, capacity: self.capacity, device, loaded: None })
    }

    fn scorer(&self, lane: Lane) -> Result<ModelScorer, EngineError> {
        let device = self.device(Role::Scorer(lane))?;
        let budget_tokens = self.config.ppo.micro_batch_tokens;
        let judge = match self.scorers.get(lane.place(self.scorers.len() - 1)) {
            Some((model, normalizer)) => model.on(device).map(|model| Judge::Whole(model, *normalizer)),
            None => self.reference.on(device).map(|model| Judge::Tokens(model, self.settings.sampling.temperature)),
        };
        Ok(ModelScorer { judge: judge.map_err(TrainingError::from)?, budget_tokens })
    }

    fn learner(&self, version: PolicyVersion) -> Result<Learner, EngineError> {
        lock(&self.learner).take().ok_or_else(|| {
            let next = version.next();
            EngineError::Fatal(format!("the update to {next} failed half-way, and its weights are lost with it"))
        })
    }

    fn evaluate(&self, version: PolicyVersion, weights: &Frozen<Policy>) -> Result<(), EngineError> {
        let device = self.device(Role::Learner)?;
        let policy = weights.on(device).map_err(TrainingError::from)?;
        (self.examine)(version, &policy);
        Ok(streams::synchronize(device).map_err(LmError::from).map_err(TrainingError::from)?)
    }

    fn size_bytes(weights: &Frozen<Policy>) -> usize {
        let policy = lock(&weights.0);
        let flat = policy.parameters().flat();
        flat.numel() * flat.kind().elt_size_in_bytes()
    }

    fn enter(&self, role: Role) -> Result<(), EngineError> {
        let Some(placement) = self.placement(role) else { return Ok(()) };
        if role != Role::Learner {
            stand_back(self.config.placement.nice)?;
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.config.stage_threads(placement, cores);
        let fatal = |error: LibtorchError| EngineError::Fatal(error.to_string());
        saddle_libtorch::set_threads(threads).map_err(fatal)?;
        if self.config.placement.streams { streams::enter(self.device(role)?).map_err(fatal) } else { Ok(()) }
    }
}

/// Leaves busy cores to others, from this thread and those that it starts.
fn stand_back(nice: i32) -> Result<(), EngineError> {
    let refused = |error| EngineError::Fatal(format!("placement.nice = {nice}: {error}"));
    // Of a thread, not of the process: Linux keeps priorities by thread.
    rustix::process::nice(nice).map(drop).map_err(refused)
}

/// Decodes with a key-value cache.
#[derive(Debug)]
pub struct ModelGenerator {
    settings: DecodeSettings,
    rows: usize,
    capacity: usize,
    device: Device,
    loaded: Option<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    weights: DecodingWeights,
    version: PolicyVersion,
    batch: DecodingBatch,
}

impl ModelGenerator {
    /// Waits until nothing reads the weights any more that are about to be let go.
    fn finish(&self) -> Result<(), EngineError> {
        Ok(streams::synchronize(self.device).map_err(LmError::from).map_err(TrainingError::from)?)
    }
}

impl Drop for ModelGenerator {
    fn drop(&mut self) {
        // A GPU that fails here fails whoever uses it next, with its reason.
        drop(self.finish());
    }
}

impl Generate<Frozen<Policy>> for ModelGenerator {
    fn free(&self) -> usize {
        self.loaded.as_ref().map_or(self.rows, |loaded| loaded.batch.free())
    }

    fn load(&mut self, weights: &Snapshot<PolicyVersion, Frozen<Policy>>, cache: Cache) -> Result<(), EngineError> {
        self.finish()?;
        let policy = weights.value.on(self.device).map_err(TrainingError::from)?;
        let ready = DecodingWeights::new(&policy, self.settings.precision).map_err(TrainingError::from)?;
        let mut batch = match self.loaded.take() {
            Some(loaded) => loaded.batch,
            None => DecodingBatch::new(&ready, self.settings.clone(), self.rows, self.capacity)
                .map_err(TrainingError::from)?,
        };
        if cache == Cache::Rebuild {
            batch.rebuild(&ready).map_err(TrainingError::from)?;
        }
        self.loaded = Some(Loaded { weights: ready, version: weights.version, batch });
        Ok(())
    }

    fn advance(&mut self, prompts: Vec<Prompt>) -> Result<Vec<Rollout>, EngineError> {
        let without = || EngineError::Failed("the generator has no weights yet".to_owned());
        let Loaded { weights, version, batch } = self.loaded.as_mut().ok_or_else(without)?;
        let mut ended = batch.admit(weights, *version, prompts).map_err(TrainingError::from)?;
        ended.extend(batch.step(weights, *version).map_err(TrainingError::from)?);
        Ok(ended)
    }

    fn evict(&mut self, ordinal: PromptOrdinal) -> Result<(), EngineError> {
        match &mut self.loaded {
            Some(loaded) => Ok(loaded.batch.evict(ordinal).map_err(TrainingError::from)?),
            None => Ok(()),
        }
    }
}

/// Scores with one model.
#[derive(Debug)]
pub struct ModelScorer {
    judge: Judge,
    budget_tokens: usize,
}

#[derive(Debug)]
enum Judge {
    Whole(ScoreModel, Option<Normalizer>),
    /// The reference, and the temperature that responses were sampled at.
    Tokens(Policy, f64),
}

impl Score for ModelScorer {
    fn score(&mut self, rollouts: &[Arc<Rollout>]) -> Result<Vec<Verdict>, EngineError> {
        let rollouts: Vec<Rollout> = rollouts.iter().map(|rollout| Rollout::clone(rollout)).collect();
        Ok(match &self.judge {
            Judge::Whole(model, normalizer) => {
                let scores = score_rollouts(model, &rollouts, self.budget_tokens)?;
                normalised(scores, *normalizer).into_iter().map(Verdict::Whole).collect()
            }
            Judge::Tokens(reference, temperature) => {
                let rows = reference_log_probs(reference, &rollouts, *temperature, self.budget_tokens)?;
                rows.into_iter().map(Verdict::Tokens).collect()
            }
        })
    }
}

impl Learn<Frozen<Policy>> for Learner {
    fn update(&mut self, rollouts: &[ScoredRollout], lambdas: &[f64]) -> Result<UpdateMetrics, EngineError> {
        Ok(Self::update(self, rollouts, lambdas)?)
    }

    fn snapshot(&self) -> Result<Frozen<Policy>, EngineError> {
        let snapshot = self.policy().snapshot().map_err(TrainingError::from)?;
        streams::synchronize(snapshot.device()).map_err(LmError::from).map_err(TrainingError::from)?;
        Ok(Frozen::new(snapshot))
    }
}
