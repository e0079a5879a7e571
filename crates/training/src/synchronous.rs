//! The synchronous schedule: generate, score, move λ, update, and again. Every rollout is of the weights that it trains,
//! so nothing has to be corrected. It is the reference point that asynchronous schedules are held against.
//!
//! With `ppo.staleness` above zero, scored batches wait in a queue of that length before the learner takes them: what an
//! asynchronous schedule does to the learner, without its timing. Costs do not wait: they move λ when they are scored.

use crate::config::TrainConfig;
use crate::learner::Learner;
use crate::models::Scorer;
use crate::scoring::reference_log_probs;
use crate::{Observer, TrainingError};
use saddle_algorithms::dual::{ConstraintConfig, Controller, CostEstimator, CostSample, HoldCause, Step as DualStep};
use saddle_core::{Finish, PolicyVersion, Prompt, PromptOrdinal, Rollout, ScoredRollout};
use saddle_lm::{DecodeSettings, Policy, Sampling, generate};
use std::collections::VecDeque;
use std::time::Instant;

/// The frozen models around a policy in training.
#[derive(Debug)]
pub struct Judges {
    /// The policy as it was when training began.
    pub reference: Policy,
    /// Scores how helpful a response is.
    pub reward: Scorer,
    /// Score how harmful it is, one for each constraint.
    pub costs: Vec<Scorer>,
}

/// One constraint's estimate and multiplier.
#[derive(Debug)]
pub struct Dual {
    name: String,
    limit: f64,
    maximum_multiplier: f64,
    estimator: CostEstimator,
    controller: Controller,
}

impl Dual {
    /// The constraints of `config`, in the order of their names.
    #[must_use]
    pub fn all(config: &TrainConfig) -> Vec<Self> {
        config.constraints.iter().map(|(name, section)| Self::new(name, &section.dual)).collect()
    }

    /// The constraint `name`; `config` is valid.
    #[must_use]
    pub fn new(name: &str, config: &ConstraintConfig) -> Self {
        Self {
            name: name.to_owned(),
            limit: config.cost_limit,
            maximum_multiplier: config.maximum_multiplier,
            estimator: CostEstimator::new(&config.estimator),
            controller: Controller::new(config),
        }
    }

    /// λ.
    #[must_use]
    pub fn multiplier(&self) -> f64 {
        self.controller.multiplier()
    }

    /// λ_max.
    #[must_use]
    pub fn maximum_multiplier(&self) -> f64 {
        self.maximum_multiplier
    }

    /// The estimate that the step for the policy of `version` would go by.
    #[must_use]
    pub fn cost_estimate(&self, version: PolicyVersion) -> Option<f64> {
        self.estimator.estimate(version).map(|estimate| estimate.mean)
    }

    /// Takes in the cost of a response that was scored under the weights of `version`.
    pub fn observe(&mut self, cost: f32, version: PolicyVersion) {
        self.estimator.observe(CostSample { cost: f64::from(cost), version, sequence_log_weight: 0.0 });
    }
}

/// Runs `config.ppo.updates` updates on responses sampled as `settings` say ([`decode_settings`]). `prompt` gives the prompt at a place of the endless sequence.
///
/// An update trains on the batch of `config.ppo.staleness` updates before; for the first ones, so many batches are made
/// ahead of time. Batches that are still waiting at the end were scored for λ and the metrics only.
///
/// # Errors
/// [`TrainingError::Diverged`] if the learner gives up, or if a whole batch gives nothing to learn from.
pub fn train_synchronously(
    config: &TrainConfig,
    mut learner: Learner,
    judges: &Judges,
    settings: DecodeSettings,
    prompt: impl Fn(PromptOrdinal) -> Prompt,
    observer: &mut dyn Observer,
) -> Result<Learner, TrainingError> {
    let mut duals = Dual::all(config);
    let mut source = Source { config, judges, settings, prompt, batches: 0 };
    let mut waiting = VecDeque::new();
    for _ in 0..config.ppo.staleness {
        let batch = source.next(&learner)?;
        observe_costs(&mut duals, &batch.scored, learner.version());
        waiting.push_back(batch.scored);
    }
    for update in 0..config.ppo.updates {
        let batch = source.next(&learner)?;
        let mut clock = Clock::start();
        let mut metrics = describe(&batch.scored, &duals);
        metrics.push(("empty_responses".to_owned(), batch.empty as f64));
        metrics.extend(observer.rollouts(&batch.scored));
        observe_costs(&mut duals, &batch.scored, learner.version());
        let lambdas = move_multipliers(&mut duals, learner.version(), 0.0, &mut metrics);
        waiting.push_back(batch.scored);
        let watch_seconds = clock.lap();
        let oldest = waiting.pop_front().expect("a batch was pushed just now");
        metrics.extend(learner.update(&oldest, &lambdas)?);
        metrics.extend([
            ("generate_seconds".to_owned(), batch.generate_seconds),
            ("score_seconds".to_owned(), batch.score_seconds + watch_seconds),
            ("learn_seconds".to_owned(), clock.lap()),
        ]);
        observer.step(update + 1, config.ppo.updates, &metrics);
    }
    Ok(learner)
}

/// How the responses of a run are sampled.
#[must_use]
pub fn decode_settings(config: &TrainConfig, stop_tokens: Vec<i64>) -> DecodeSettings {
    let generation = &config.generation;
    DecodeSettings {
        sampling: Sampling { temperature: generation.temperature, top_k: 0, top_p: 1.0 },
        max_new_tokens: generation.max_new_tokens,
        limits: vec![],
        stop_tokens,
        seed: config.run.seed,
        precision: config.precision.generation,
    }
}

/// Where scored batches come from: the next prompts, the current weights, and the judges.
struct Source<'a, P> {
    config: &'a TrainConfig,
    judges: &'a Judges,
    settings: DecodeSettings,
    prompt: P,
    batches: u64,
}

/// A scored batch, and what it took.
struct Batch {
    scored: Vec<ScoredRollout>,
    /// Prompts that left no room for a response.
    empty: usize,
    generate_seconds: f64,
    score_seconds: f64,
}

impl<P: Fn(PromptOrdinal) -> Prompt> Source<'_, P> {
    fn next(&mut self, learner: &Learner) -> Result<Batch, TrainingError> {
        let mut clock = Clock::start();
        let count = self.config.ppo.batch_rollouts as u64;
        let ordinals = (self.batches * count..(self.batches + 1) * count).map(PromptOrdinal);
        self.batches += 1;
        let prompts = ordinals.map(&self.prompt).collect();
        let (settings, rows) = (self.settings.clone(), self.config.generation.rows);
        let rollouts = generate(learner.policy(), learner.version(), prompts, settings, rows)?;
        let generate_seconds = clock.lap();
        let (rollouts, empty): (Vec<Rollout>, Vec<Rollout>) =
            rollouts.into_iter().partition(|rollout| !rollout.tokens.is_empty());
        if rollouts.len() < self.config.ppo.minibatches {
            return Err(TrainingError::Diverged(format!(
                "batch {}: {} of {count} prompts left no room for a response; lower prompts.max_tokens",
                self.batches,
                empty.len()
            )));
        }
        let scored = judge(self.config, self.judges, rollouts)?;
        Ok(Batch { scored, empty: empty.len(), generate_seconds, score_seconds: clock.lap() })
    }
}

/// Scores every rollout with every judge.
pub(crate) fn judge(
    config: &TrainConfig,
    judges: &Judges,
    rollouts: Vec<Rollout>,
) -> Result<Vec<ScoredRollout>, TrainingError> {
    let budget = config.ppo.micro_batch_tokens;
    let rewards = judges.reward.score(&rollouts, budget)?;
    let costs = judges.costs.iter().map(|scorer| scorer.score(&rollouts, budget)).collect::<Result<Vec<_>, _>>()?;
    let references = reference_log_probs(&judges.reference, &rollouts, config.generation.temperature, budget)?;
    let scored =
        rollouts.into_iter().zip(references).enumerate().map(|(row, (rollout, reference_log_probs))| ScoredRollout {
            rollout,
            reward: rewards[row],
            costs: costs.iter().map(|scores| scores[row]).collect(),
            reference_log_probs,
        });
    Ok(scored.collect())
}

/// Every finished response's cost enters its estimator when it is scored, before any filter (DUAL-3).
fn observe_costs(duals: &mut [Dual], scored: &[ScoredRollout], version: PolicyVersion) {
    for (index, dual) in duals.iter_mut().enumerate() {
        for each in scored {
            dual.observe(each.costs[index], version);
        }
    }
}

/// Each multiplier makes its one step for the policy of `version`, on costs that come `delay_versions` late. Returns them.
pub fn move_multipliers(
    duals: &mut [Dual],
    version: PolicyVersion,
    delay_versions: f64,
    metrics: &mut Vec<(String, f64)>,
) -> Vec<f64> {
    let only = duals.len() == 1;
    let mut lambdas = Vec::with_capacity(duals.len());
    for dual in duals {
        let estimate = dual.estimator.estimate(version);
        let step = dual.controller.step(estimate, delay_versions);
        let mut push = |name: &str, value: f64| metrics.push((constraint_metric(name, &dual.name, only), value));
        if let Some(estimate) = estimate {
            push("cost_estimate", estimate.mean);
            push("cost_estimate_stderr", estimate.standard_error);
            let considered = dual.estimator.considered_samples(version);
            push("cost_estimator_ess_ratio", estimate.effective_samples / considered as f64);
        }
        for cause in HoldCause::ALL {
            push(&format!("lambda_held_{}", cause.label()), f64::from(u8::from(step == DualStep::Held(cause))));
        }
        push("lambda", dual.controller.multiplier());
        push("cost_limit", dual.limit);
        lambdas.push(dual.controller.multiplier());
    }
    lambdas
}

/// A metric of one constraint: its plain name where there is only one constraint, else with the constraint's name.
fn constraint_metric(metric: &str, constraint: &str, only: bool) -> String {
    if only { metric.to_owned() } else { format!("{metric}_{constraint}") }
}

/// Means over a batch as it was sampled.
#[must_use]
pub fn describe(scored: &[ScoredRollout], duals: &[Dual]) -> Vec<(String, f64)> {
    let only = duals.len() == 1;
    let mean = |value: &dyn Fn(&ScoredRollout) -> f64| scored.iter().map(value).sum::<f64>() / scored.len() as f64;
    let mut metrics = vec![
        ("reward_mean".to_owned(), mean(&|each| f64::from(each.reward))),
        ("response_length_mean".to_owned(), mean(&|each| each.rollout.tokens.len() as f64)),
        ("truncated_ratio".to_owned(), mean(&|each| f64::from(u8::from(each.rollout.finish == Finish::Length)))),
    ];
    for (index, dual) in duals.iter().enumerate() {
        let mut push = |name: &str, value: f64| metrics.push((constraint_metric(name, &dual.name, only), value));
        push("cost_mean", mean(&|each| f64::from(each.costs[index])));
        push("unsafe_ratio", mean(&|each| f64::from(u8::from(each.costs[index] > 0.0))));
        let mut kinds: Vec<&str> = scored.iter().filter_map(|each| each.rollout.prompt.kind.as_deref()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for kind in kinds {
            let costs: Vec<f64> = scored
                .iter()
                .filter(|each| each.rollout.prompt.kind.as_deref() == Some(kind))
                .map(|each| f64::from(each.costs[index]))
                .collect();
            push(&format!("cost_mean_{kind}"), costs.iter().sum::<f64>() / costs.len() as f64);
        }
    }
    metrics
}

/// Seconds between laps.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn lap(&mut self) -> f64 {
        let seconds = self.0.elapsed().as_secs_f64();
        self.0 = Instant::now();
        seconds
    }
}
