//! `saddle train`.

use super::asynchronous::{Trained, train_asynchronously};
use super::prompts::Prompts;
use super::saving::save_model;
use super::watched::{Watch, Watched};
use super::{StageResult, note_skipped, note_too_long, save_adapter};
use crate::evaluation::HeldOut;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::run;
use saddle_actors::model::ModelEngines;
use saddle_core::{PolicyVersion, Prompt, PromptOrdinal, Rollout};
use saddle_data::read_supervised;
use saddle_lm::{DecodeSettings, ModelKind, Policy, Precision, Tokenizer, generate};
use saddle_store::RunDirectory;
use saddle_telemetry::{ControlToken, Telemetry};
use saddle_training::config::TrainConfig;
use saddle_training::{
    CriticSet, Judges, Learner, Observer, PolicyModel, Ptx, Scorer, Sequence, TrainingError, Verdict, decode_settings,
    encode_supervised, train_synchronously,
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

/// Trains a policy as `config` says into `run`, and returns its verdict and its held-out figures. `watch` may add metrics of
/// its own.
pub(crate) fn policy_training(
    config: &TrainConfig,
    run: &RunDirectory,
    watch: Option<Watch<'_>>,
) -> Result<StageResult, Failure> {
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
    let tokenizer = Arc::new(tokenizer);
    let (prompts, held_out) =
        Prompts::read(config, &tokenizer, policy.config().max_position_embeddings, &mut progress)?;
    let prompts = Arc::new(prompts);
    let held_out = match held_out.is_empty() {
        true => None,
        false => Some(Arc::new(HeldOut::new(config, &judges, held_out, Arc::clone(&tokenizer), run)?)),
    };
    let telemetry = Arc::new(Telemetry::new(env!("CARGO_PKG_VERSION")).map_err(Failure::run)?);
    let ranges = std::iter::once(&judges.reward).chain(&judges.costs).map(|scorer| scorer.score_range).collect();
    let scorers: Vec<_> =
        std::iter::once(&judges.reward.model).chain(judges.costs.iter().map(|cost| &cost.model)).collect();
    let critics = CriticSet::new(&config.critics, config.lora.as_ref(), &scorers, config.run.seed, device)?;
    let settings = decode_settings(config, stop_tokens(&policy, &tokenizer)?);
    let probe = Probe { prompt: prompts.prompt(PromptOrdinal(0)), settings: settings.clone() };
    let ptx = Ptx::new(read_ptx(config, &tokenizer, &mut progress)?);
    let mut learner = Learner::new(config.clone(), policy, critics, ptx)?;
    let shared = (Arc::clone(&prompts), Arc::clone(&tokenizer));
    let mut watched = Watched::new(config, ranges, progress, watch, shared, held_out.clone(), Arc::clone(&telemetry));
    let trained = if config.is_asynchronous() {
        let drawn = Arc::clone(&prompts);
        let prompt = Box::new(move |ordinal| drawn.prompt(ordinal));
        let examine = Box::new(move |version, policy: &_| {
            if let Some(held_out) = &held_out {
                held_out.examine(version, policy);
            }
        });
        let engines = ModelEngines::new(config.clone(), learner, judges, settings, prompt, examine);
        train_asynchronously(config, engines, token, telemetry, &mut watched)?
    } else {
        let prompt = |ordinal| prompts.prompt(ordinal);
        let trained = train_synchronously(config, &mut learner, &judges, settings, prompt, &mut watched);
        let (version, policy) = (learner.version(), learner.policy().snapshot().map_err(TrainingError::from)?);
        Trained { version, policy, failure: trained.err().map(Failure::from) }
    };
    let Trained { version, policy, failure } = trained;
    if let Some(failure) = failure {
        return Err(keep(failure, version, &policy, (&tokenizer, &probe), run));
    }
    save_adapter(&policy, Some(&config.policy.from), run)?;
    save_model(run, |path| Ok(PolicyModel::save(&policy, &tokenizer, path)?))?;
    let verdicts = watched.judge(version, &policy);
    run.write_verdicts(&verdicts)?;
    verdicts.iter().for_each(|verdict| watched.note(&verdict.to_string()));
    let result = result(&verdicts, &watched, run);
    watched.finish(run)?;
    Ok(result)
}

/// A question to see whether a policy still answers.
struct Probe {
    prompt: Prompt,
    settings: DecodeSettings,
}

impl Probe {
    /// Whether the policy gives finite numbers.
    fn is_answered(&self, version: PolicyVersion, policy: &Policy) -> bool {
        let answers = generate(policy, version, vec![self.prompt.clone()], self.settings.clone(), 1);
        let is_finite = |answer: &Rollout| answer.log_probs.iter().all(|log_prob| log_prob.is_finite());
        answers.is_ok_and(|answers| answers.iter().all(is_finite))
    }
}

/// Saves what a run that failed has learnt (LEAVE-1), unless nothing sound is left of it. Its failure, and where the model is.
fn keep(
    failure: Failure,
    version: PolicyVersion,
    policy: &Policy,
    (tokenizer, probe): (&Tokenizer, &Probe),
    run: &RunDirectory,
) -> Failure {
    if version == PolicyVersion(0) {
        return failure;
    }
    if !probe.is_answered(version, policy) {
        return failure.and(&format!("the policy of update {} gives no finite numbers, and was not saved", version.0));
    }
    match save_model(run, |path| Ok(PolicyModel::save(policy, tokenizer, path)?)) {
        Ok(path) => failure.and(&format!("the policy of update {} is in {}", version.0, path.display())),
        Err(error) => failure.and(&format!("the policy of update {} could not be saved: {error}", version.0)),
    }
}

/// What the closing table says.
fn result(verdicts: &[Verdict], watched: &Watched<'_>, run: &RunDirectory) -> StageResult {
    let (best, last) = watched.examined();
    let mut details: Vec<_> = verdicts.iter().map(|verdict| ("verdict", verdict.to_string())).collect();
    if let Some(version) = best {
        let path = run.best_path();
        details.push(("best model", format!("{}, of update {version}", path.display())));
    }
    let mut figures = Vec::new();
    if let Some(record) = last {
        figures.push(("held_out_reward".to_owned(), record.all.reward.mean));
        for (name, cost) in &record.all.constraints {
            figures.push((format!("held_out_{name}"), cost.cost.mean));
            figures.push((format!("held_out_{name}_upper"), cost.bounds.1));
            figures.push((format!("held_out_{name}_unsafe_ratio"), cost.unsafe_ratio.mean));
        }
    }
    let broken = verdicts.iter().find(|verdict| !verdict.held).map(ToString::to_string);
    StageResult { details, figures, broken }
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

/// The tokens that end a response: those of the model's configuration and the tokenizer's own, which responses are trained to
/// end with.
pub(crate) fn stop_tokens(policy: &saddle_lm::Policy, tokenizer: &Tokenizer) -> Result<Vec<i64>, Failure> {
    let tokens = policy.config().with_end_tokens(tokenizer.eos()).eos_token_ids;
    if tokens.is_empty() {
        return Err(Failure::usage(
            "the policy has no token that ends a response: set eos_token in its tokenizer_config.json",
        ));
    }
    Ok(tokens)
}
