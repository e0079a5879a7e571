//! The synchronous schedule: generate, score, move λ, update, and again. Every rollout is of the weights that it trains,
//! so nothing has to be corrected. It is the reference point that asynchronous schedules are held against.
//!
//! With `ppo.delay_updates` above zero, scored batches wait in a queue of that length before the learner takes them: what an
//! asynchronous schedule does to the learner, without its timing. Costs do not wait: they move λ when they are scored.

use crate::config::TrainConfig;
use crate::dual::{Dual, DualStep};
use crate::judges::{Judges, judge};
use crate::learner::Learner;
use crate::metrics::{BatchMetrics, Named};
use crate::{Observer, TrainingError};
use saddle_core::{PolicyVersion, Prompt, PromptOrdinal, Rollout, ScoredRollout};
use saddle_lm::{DecodeSettings, Sampling, generate};
use std::collections::VecDeque;
use std::time::Instant;

/// Runs `config.ppo.updates` updates on responses sampled as `settings` say ([`decode_settings`]). `prompt` gives the prompt at a place of the endless sequence.
///
/// An update trains on the batch of `config.ppo.delay_updates` updates before; for the first ones, so many batches are made
/// ahead of time. Batches that are still waiting at the end were scored for λ and the metrics only. Ends early when the
/// observer says so.
///
/// # Errors
/// [`TrainingError::Diverged`] if the learner gives up, or if a whole batch gives nothing to learn from.
pub fn train_synchronously(
    config: &TrainConfig,
    learner: &mut Learner,
    judges: &Judges,
    settings: DecodeSettings,
    prompt: impl Fn(PromptOrdinal) -> Prompt,
    observer: &mut dyn Observer,
) -> Result<(), TrainingError> {
    let mut duals = Dual::all(config);
    let mut source = Source { config, judges, settings, prompt, batches: 0 };
    let mut waiting = VecDeque::new();
    for _ in 0..config.ppo.delay_updates {
        let batch = source.next(learner)?;
        observe_costs(&mut duals, &batch.scored, learner.version());
        waiting.push_back(batch.scored);
    }
    for update in 0..config.ppo.updates {
        let batch = source.next(learner)?;
        let mut clock = Clock::start();
        let named = Named { only: duals.len() == 1 };
        let mut metrics = named.batch(&BatchMetrics::of(&batch.scored, duals.iter().map(Dual::name)));
        metrics.push(("empty_responses".to_owned(), batch.empty as f64));
        metrics.extend(observer.rollouts(&batch.scored));
        observe_costs(&mut duals, &batch.scored, learner.version());
        let steps: Vec<DualStep> = duals.iter_mut().map(|dual| dual.step(learner.version(), 0.0)).collect();
        metrics.extend(named.steps(&steps));
        let lambdas: Vec<f64> = steps.iter().map(|step| step.multiplier).collect();
        waiting.push_back(batch.scored);
        let watch_seconds = clock.lap();
        let oldest = waiting.pop_front().expect("a batch was pushed just now");
        let learnt = learner.update(&oldest, &lambdas)?;
        metrics.extend(named.update(&learnt));
        observer.updated(update + 1, &steps, &learnt);
        metrics.extend([
            ("generate_seconds".to_owned(), batch.generate_seconds),
            ("score_seconds".to_owned(), batch.score_seconds + watch_seconds),
            ("learn_seconds".to_owned(), clock.lap()),
        ]);
        observer.step(update + 1, config.ppo.updates, &metrics);
        observer.published(learner.version(), learner.policy());
        if update + 1 < config.ppo.updates && observer.is_told_to_leave() {
            break;
        }
    }
    Ok(())
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

/// Every finished response's cost enters its estimator when it is scored, before any filter (DUAL-3).
fn observe_costs(duals: &mut [Dual], scored: &[ScoredRollout], version: PolicyVersion) {
    for (index, dual) in duals.iter_mut().enumerate() {
        for each in scored {
            dual.observe(each.costs[index], version);
        }
    }
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
