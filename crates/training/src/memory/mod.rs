//! What a run of `saddle train` needs in memory, estimated from its configuration and the shapes of its models: no
//! weights are read.
//!
//! A model in training holds its weights, the sum of gradients, and AdamW's two moments. With adapters all of this is of the
//! adapters, over weights that are shared: the policy's with the reference, a critic's with its score model. Frozen models
//! are shared by the stages of a device and copied to others. A generator has weights of its own where they are not the
//! shared ones as they are: packed on a CPU, rounded on a GPU. An update needs what the backward passes of policy and critics
//! keep of a micro-batch. In the synchronous schedule stages take turns, so that what they work with is there one at a time;
//! in the asynchronous one it adds up.

mod sizes;

use crate::config::{Critics, StagePlacement, TrainConfig};
use saddle_lm::{DecoderConfig, LmError, Precision};
use std::collections::BTreeMap;
use std::fmt;

/// The program and its libraries, beside tensors.
const PROGRAM_BYTES: u64 = 400 << 20;
/// Copies of the policy's weights that are published at once: the newest, and the one that generators still use.
const PUBLISHED: usize = 2;
/// What allocators keep back of memory that comes and goes, as its share.
const SLACK: f64 = 0.25;
/// Gradient and two moments.
const OPTIMIZER: usize = 3;
/// Of what is trained and of what is computed: float32.
const FULL: Precision = Precision::F32;
const GIB: f64 = (1u64 << 30) as f64;

/// The shapes of a run's models.
#[derive(Clone, Debug)]
pub struct RunShapes {
    /// Of the policy, and so of the reference.
    pub policy: DecoderConfig,
    /// Of the reward model.
    pub reward: DecoderConfig,
    /// Of the cost model of each constraint, in the order of their names.
    pub costs: Vec<DecoderConfig>,
}

/// What a run needs, device by device.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    parts: BTreeMap<String, Vec<Part>>,
    in_turns: bool,
}

#[derive(Clone, Debug)]
struct Part {
    stage: &'static str,
    what: String,
    bytes: u64,
    /// There only while its stage works.
    working: bool,
}

impl MemoryPlan {
    /// The plan of a valid `config` for models of these `shapes`.
    ///
    /// # Errors
    /// [`LmError::Mismatch`] if a model cannot have the adapters that are asked for.
    pub fn new(config: &TrainConfig, shapes: &RunShapes) -> Result<Self, LmError> {
        let mut plan = Self { parts: BTreeMap::new(), in_turns: !config.is_asynchronous() };
        Planner { config, shapes, plan: &mut plan }.all()?;
        Ok(plan)
    }

    /// Bytes that each device needs at the most.
    #[must_use]
    pub fn devices(&self) -> BTreeMap<&str, u64> {
        self.parts.iter().map(|(device, parts)| (device.as_str(), self.total(parts))).collect()
    }

    fn total(&self, parts: &[Part]) -> u64 {
        let held: u64 = parts.iter().filter(|part| !part.working).map(|part| part.bytes).sum();
        let mut working: BTreeMap<&str, u64> = BTreeMap::new();
        for part in parts.iter().filter(|part| part.working) {
            *working.entry(part.stage).or_default() += part.bytes;
        }
        let working = working.into_values();
        let working: u64 = if self.in_turns { working.max().unwrap_or(0) } else { working.sum() };
        held + working + (SLACK * working as f64) as u64
    }
}

/// The plan, for people: a line for each part, and for each device the sum.
impl fmt::Display for MemoryPlan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| format!("{:.2} GiB", bytes as f64 / GIB);
        for (device, parts) in &self.parts {
            writeln!(out, "memory of {device}, estimated")?;
            for Part { stage, what, bytes, .. } in parts.iter().filter(|part| part.bytes > 0) {
                writeln!(out, "  {:<58} {:>12}", format!("{stage}: {what}"), gib(*bytes))?;
            }
            let turns = if self.in_turns { ", where stages take turns" } else { "" };
            writeln!(
                out,
                "  {:<58} {:>12}",
                format!("at the most, with room for allocators{turns}"),
                gib(self.total(parts))
            )?;
        }
        Ok(())
    }
}

struct Planner<'a> {
    config: &'a TrainConfig,
    shapes: &'a RunShapes,
    plan: &'a mut MemoryPlan,
}

impl Planner<'_> {
    fn all(&mut self) -> Result<(), LmError> {
        let placement = &self.config.placement;
        self.learner()?;
        self.generators()?;
        let policy = sizes::policy_weights(&self.shapes.policy);
        self.widened();
        let work = sizes::logits(&self.shapes.policy, self.response_tokens(), 3);
        let passing = sizes::passing(&self.shapes.policy, self.scored_tokens());
        self.frozen("reference", &placement.reference, policy, work + passing);
        let (reward, costs) = (&self.shapes.reward, &self.shapes.costs);
        self.scorer("reward", &placement.reward, reward);
        costs.iter().for_each(|cost| self.scorer("cost", &placement.cost, cost));
        let device = self.config.run.device.clone();
        self.push(
            &device,
            Part { stage: "program", what: "libraries".to_owned(), bytes: PROGRAM_BYTES, working: false },
        );
        Ok(())
    }

    /// The policy and the critics in training.
    fn learner(&mut self) -> Result<(), LmError> {
        // The learner is made where the run is, whatever its placement.
        let device = self.config.run.device.clone();
        let (reward, costs) = (&self.shapes.reward, &self.shapes.costs);
        let critics: Vec<(&DecoderConfig, usize)> = match self.config.critics.layout {
            Critics::Separate => std::iter::once(reward).chain(costs).map(|each| (each, 1)).collect(),
            Critics::TwoHeaded => vec![(reward, 1 + costs.len())],
        };
        let (policy, workers) = (self.trained_policy()?, self.config.ppo.workers);
        let trained = critics.iter().map(|critic| self.trained_critic(*critic)).sum::<Result<usize, _>>()?;
        let what = if self.config.lora.is_some() { "adapters" } else { "weights" };
        let critics_called = format!("{} × critic", critics.len());
        for (whose, numbers) in [("policy", policy), (critics_called.as_str(), trained)] {
            self.add(&device, "learner", format!("{what} of {whose}"), (numbers, FULL), false);
            let state = ((OPTIMIZER + workers - 1) * numbers, FULL);
            self.add(&device, "learner", format!("gradients and moments of {whose}"), state, false);
        }
        let tokens = self.learnt_tokens();
        let activations = |shape| sizes::activations(shape, tokens, self.sequence_tokens(), device == "cpu");
        let kept = activations(&self.shapes.policy)
            + sizes::logits(&self.shapes.policy, self.response_tokens().min(tokens), 4)
            + critics.iter().map(|(shape, _)| activations(shape)).sum::<usize>();
        self.add(&device, "learner", format!("activations of {tokens} tokens"), (kept, FULL), true);
        // Weights that are rounded for a product are kept for its backward pass; those that are kept rounded already are not.
        let is_kept_narrow = self.config.lora.is_some() && self.config.precision.frozen == Precision::Bf16;
        if self.config.precision.learning == Precision::Bf16 && !is_kept_narrow {
            let critics = critics.iter().map(|(shape, heads)| sizes::score_weights(shape, *heads));
            let rounded = workers * (sizes::policy_weights(&self.shapes.policy) + critics.sum::<usize>());
            self.add(&device, "learner", "weights rounded to bf16".to_owned(), (rounded, Precision::Bf16), true);
        }
        Ok(())
    }

    /// What is trained of the policy: its adapters, if it has any, else its weights.
    fn trained_policy(&self) -> Result<usize, LmError> {
        let shape = &self.shapes.policy;
        self.config.lora.as_ref().map_or(Ok(sizes::policy_weights(shape)), |lora| sizes::adapters(lora, shape))
    }

    /// The same of a critic with so many heads, which are trained in either case.
    fn trained_critic(&self, (shape, heads): (&DecoderConfig, usize)) -> Result<usize, LmError> {
        match &self.config.lora {
            Some(lora) => Ok(sizes::adapters(lora, shape)? + sizes::score_heads(shape, heads)),
            None => Ok(sizes::score_weights(shape, heads)),
        }
    }

    fn generators(&mut self) -> Result<(), LmError> {
        let placement = &self.config.placement.generator;
        let (device, precision) = (self.device(placement), self.config.precision.generation);
        let (count, rows) = (if self.plan.in_turns { 1 } else { placement.count }, self.config.generation.rows);
        let shape = &self.shapes.policy;
        if !self.plan.in_turns {
            let (home, published) = (self.config.run.device.clone(), PUBLISHED * self.trained_policy()?);
            let what = if self.config.lora.is_some() { "adapters" } else { "weights" };
            self.add(&home, "learner", format!("{PUBLISHED} × published {what}"), (published, FULL), false);
            if device != home {
                let weights = (count * sizes::policy_weights(shape), self.policy_kept());
                self.add(&device, "generator", format!("{count} × copy of the weights"), weights, false);
            }
        }
        let weights = (count * sizes::policy_weights(shape), precision);
        let on_cpu = device == "cpu";
        if on_cpu {
            self.add(&device, "generator", format!("{count} × packed weights"), weights, false);
        } else if precision == Precision::Bf16 && self.policy_kept() == FULL {
            self.add(&device, "generator", format!("{count} × weights rounded to bf16"), weights, false);
        }
        let capacity = self.sequence_tokens();
        let cache = (count * sizes::key_value_cache(shape, rows, capacity), precision);
        self.add(&device, "generator", format!("{count} × keys and values of {rows} × {capacity} tokens"), cache, true);
        let prompts = sizes::passing(shape, rows * self.config.prompts.max_tokens);
        let work = count * (prompts + sizes::logits(shape, rows, 6));
        self.add(&device, "generator", "prompts and logits".to_owned(), (work, FULL), true);
        Ok(())
    }

    /// What the policy's weights are kept in, those beneath adapters if it has any.
    fn policy_kept(&self) -> Precision {
        if self.config.lora.is_some() { self.config.precision.frozen } else { FULL }
    }

    /// Where a stage computes in float32 with narrower weights, one matrix of them at a time is widened.
    fn widened(&mut self) {
        let precision = &self.config.precision;
        if precision.frozen == FULL || [precision.scoring, precision.learning].iter().all(|each| *each != FULL) {
            return;
        }
        let (device, shapes) = (self.config.run.device.clone(), self.shapes);
        let scorers = std::iter::once(&shapes.reward).chain(&shapes.costs);
        let largest = scorers.chain([&shapes.policy]).map(sizes::largest_matrix).max().unwrap_or(0);
        self.add(&device, "frozen weights", "a matrix, widened".to_owned(), (largest, FULL), true);
    }

    fn scorer(&mut self, stage: &'static str, placement: &StagePlacement, shape: &DecoderConfig) {
        let work = sizes::passing(shape, self.scored_tokens());
        self.frozen(stage, placement, sizes::score_weights(shape, 1), work);
    }

    /// Stages with a frozen model: one for all on the device of the run, one each elsewhere.
    fn frozen(&mut self, stage: &'static str, placement: &StagePlacement, weights: usize, work: usize) {
        let (home, device) = (self.config.run.device.clone(), self.device(placement));
        let count = if self.plan.in_turns { 1 } else { placement.count };
        let kept = self.config.precision.frozen;
        self.add(&home, stage, "weights".to_owned(), (weights, kept), false);
        if device != home {
            self.add(&device, stage, format!("{count} × copy of the weights"), (count * weights, kept), false);
        }
        let states = format!("{count} × states of {} tokens", self.scored_tokens());
        self.add(&device, stage, states, (count * work, FULL), true);
    }

    /// Adds a part of so many numbers, each of a width.
    fn add(
        &mut self,
        device: &str,
        stage: &'static str,
        what: String,
        (numbers, width): (usize, Precision),
        working: bool,
    ) {
        let bytes = width.kind().elt_size_in_bytes() as u64 * numbers as u64;
        self.push(device, Part { stage, what, bytes, working });
    }

    fn push(&mut self, device: &str, part: Part) {
        self.plan.parts.entry(device.to_owned()).or_default().push(part);
    }

    fn device(&self, placement: &StagePlacement) -> String {
        let own = if self.plan.in_turns { None } else { placement.device.clone() };
        own.unwrap_or_else(|| self.config.run.device.clone())
    }

    /// Longest prompt and response together.
    fn sequence_tokens(&self) -> usize {
        self.config.prompts.max_tokens + self.config.generation.max_new_tokens
    }

    /// Tokens of the micro-batches that the learner's workers have at once, at the most.
    fn learnt_tokens(&self) -> usize {
        let minibatch = self.config.ppo.batch_rollouts.div_ceil(self.config.ppo.minibatches.max(1));
        let workers = self.config.ppo.workers;
        workers * self.micro_batch(minibatch.div_ceil(workers))
    }

    /// Tokens that a scorer takes at once.
    fn scored_tokens(&self) -> usize {
        self.micro_batch(self.config.ppo.batch_rollouts)
    }

    fn micro_batch(&self, rollouts: usize) -> usize {
        let longest = self.sequence_tokens();
        self.config.ppo.micro_batch_tokens.max(longest).min(rollouts.saturating_mul(longest))
    }

    /// Response positions among the tokens of a micro-batch.
    fn response_tokens(&self) -> usize {
        let rows = self.scored_tokens().div_ceil(self.sequence_tokens().max(1));
        rows * self.config.generation.max_new_tokens
    }
}
