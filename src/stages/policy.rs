//! `saddle train`.

use super::asynchronous::train_asynchronously;
use super::prompts::Prompts;
use super::{note_skipped, note_too_long, save_adapter};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::run;
use saddle_actors::model::ModelEngines;
use saddle_core::{PromptOrdinal, ScoredRollout};
use saddle_data::{PromptRow, read_supervised};
use saddle_lm::{ModelKind, Precision, Tokenizer};
use saddle_store::RunDirectory;
use saddle_telemetry::ControlToken;
use saddle_training::config::TrainConfig;
use saddle_training::{
    CriticSet, Judges, Learner, Observer, PolicyModel, Ptx, Scorer, Sequence, decode_settings, encode_supervised,
    train_synchronously,
};
use std::sync::Arc;

/// What the display shows of an update.
const SHOWN: [&str; 8] = [
    "reward_mean",
    "cost_mean",
    "cost_limit",
    "lambda",
    "kl_current_reference",
    "staleness_versions_mean",
    "edge_depth_source_generator",
    "edge_depth_join_learner",
];

/// Looks at rollouts in training: given the text of each prompt, the rollouts and the tokenizer, returns metrics.
pub(crate) type Watch<'a> =
    &'a dyn Fn(&dyn Fn(PromptOrdinal) -> PromptRow, &[ScoredRollout], &Tokenizer) -> Vec<(String, f64)>;

/// Trains a policy as `config` says into `run`. `watch` may add metrics of its own.
pub(crate) fn policy_training(
    config: &TrainConfig,
    run: &RunDirectory,
    watch: Option<Watch<'_>>,
) -> Result<(), Failure> {
    let device = run::device(&config.run)?;
    let token = config.telemetry.control_token_file.as_deref().map(ControlToken::read).transpose();
    let token = token.map_err(|error| Failure::usage(format!("telemetry.control_token_file: {error}")))?;
    let mut progress = Progress::start("train", &SHOWN, run)?;
    let frozen = config.precision.frozen;
    // Under adapters the policy's own weights are frozen; else they are trained.
    let kept = if config.lora.is_some() { frozen } else { Precision::F32 };
    let PolicyModel { policy, tokenizer } = PolicyModel::load_kept(&config.policy.from, kept, device)?;
    let scorer = |path, kind, role: &str| {
        let mut scorer = Scorer::load_kept(path, Some(kind), frozen, device)?;
        scorer.require_tokenizer_of(&tokenizer, role)?;
        scorer.model = scorer.model.in_precision(config.precision.scoring);
        Ok::<_, Failure>(scorer)
    };
    // Under adapters, the reference is what lies beneath them: one set of weights serves both.
    let (policy, reference) = match &config.lora {
        Some(lora) => (policy.adapted(lora, config.run.seed)?, policy),
        None => {
            let reference = match frozen {
                Precision::F32 => policy.snapshot()?,
                Precision::Bf16 => policy.kept(frozen.kind(), device)?,
            };
            (policy, reference)
        }
    };
    let judges = Judges {
        reference: reference.in_precision(config.precision.scoring),
        reward: scorer(&config.reward_model.from, ModelKind::Reward, "reward model")?,
        costs: config
            .constraints
            .iter()
            .map(|(name, constraint)| {
                scorer(&constraint.from, ModelKind::Cost, &format!("cost model of constraint {name}"))
            })
            .collect::<Result<_, _>>()?,
    };
    let prompts = Arc::new(Prompts::read(&config.prompts, &tokenizer, config.run.seed, &mut progress)?);
    let scorers: Vec<_> =
        std::iter::once(&judges.reward.model).chain(judges.costs.iter().map(|cost| &cost.model)).collect();
    let critics = CriticSet::new(&config.critics, config.lora.as_ref(), &scorers, config.run.seed, device)?;
    let settings = decode_settings(config, stop_tokens(&policy, &tokenizer)?);
    let ptx = Ptx::new(read_ptx(config, &tokenizer, &mut progress)?);
    let learner = Learner::new(config.clone(), policy, critics, ptx)?;
    let mut watched = Watched { progress, watch, prompts: &prompts, tokenizer: &tokenizer };
    let (learner, interrupted_after) = if config.is_asynchronous() {
        let drawn = Arc::clone(&prompts);
        let prompt = Box::new(move |ordinal| drawn.prompt(ordinal));
        let engines = ModelEngines::new(config.clone(), learner, judges, settings, prompt);
        let trained = train_asynchronously(config, engines, token, &mut watched)?;
        (trained.learner, trained.interrupted_after)
    } else {
        let prompt = |ordinal| prompts.prompt(ordinal);
        (train_synchronously(config, learner, &judges, settings, prompt, &mut watched)?, None)
    };
    save_adapter(learner.policy(), Some(&config.policy.from), run)?;
    PolicyModel::save(learner.policy(), &tokenizer, &run.model_path())?;
    watched.progress.finish()?;
    match interrupted_after {
        None => Ok(()),
        Some(update) => {
            let (updates, path) = (config.ppo.updates, run.model_path());
            let path = path.display();
            Err(Failure::Interrupted(format!(
                "told to leave after update {update} of {updates}; its model is in {path}"
            )))
        }
    }
}

/// The supervised rows of the PTX loss; none without a coefficient.
fn read_ptx(
    config: &TrainConfig,
    tokenizer: &Tokenizer,
    observer: &mut dyn Observer,
) -> Result<Vec<Sequence>, Failure> {
    if config.ppo.ptx_data.is_empty() {
        return Ok(Vec::new());
    }
    let read = read_supervised(&config.ppo.ptx_data, config.prompts.bad_rows, config.run.seed)?;
    note_skipped(&read.skipped, observer);
    let max_tokens = config.prompts.max_tokens + config.generation.max_new_tokens;
    let encoded = encode_supervised(tokenizer, &read.rows, max_tokens)?;
    note_too_long(encoded.too_long, max_tokens, observer);
    Ok(encoded.rows)
}

/// The tokens that end a response: those of the model's configuration, else the tokenizer's own.
pub(crate) fn stop_tokens(policy: &saddle_lm::Policy, tokenizer: &Tokenizer) -> Result<Vec<i64>, Failure> {
    let configured = &policy.config().eos_token_ids;
    let tokens: Vec<i64> =
        if configured.is_empty() { tokenizer.eos().into_iter().collect() } else { configured.clone() };
    if tokens.is_empty() {
        return Err(Failure::usage(
            "the policy has no token that ends a response: set eos_token in its tokenizer_config.json",
        ));
    }
    Ok(tokens)
}

/// The display, and whoever else looks at rollouts.
struct Watched<'a> {
    progress: Progress,
    watch: Option<Watch<'a>>,
    prompts: &'a Prompts,
    tokenizer: &'a Tokenizer,
}

impl Observer for Watched<'_> {
    fn step(&mut self, step: u64, steps: u64, metrics: &[(String, f64)]) {
        self.progress.step(step, steps, metrics);
    }

    fn rollouts(&mut self, rollouts: &[ScoredRollout]) -> Vec<(String, f64)> {
        let row = |ordinal| self.prompts.row(ordinal).clone();
        self.watch.map_or_else(Vec::new, |watch| watch(&row, rollouts, self.tokenizer))
    }

    fn waits(&mut self, text: &str) {
        self.progress.waits(text);
    }

    fn note(&mut self, message: &str) {
        self.progress.note(message);
    }
}
