//! `saddle bench train`: seconds of whole PPO-Lagrangian iterations of the synchronous schedule, on prompts and score heads
//! drawn at random: it measures time, not learning.
//!
//! Policy, reference, reward model, cost model and critics are all of one size. Responses are as long as asked for, every one
//! is trained on, and an iteration makes one optimiser step with each model that is trained.

use crate::cli::{BenchTrainArgs, CriticLayout};
use crate::failure::Failure;
use crate::run;
use crate::table::print_result;
use saddle_core::{Prompt, PromptOrdinal};
use saddle_libtorch::peaks;
use saddle_lm::{ModelKind, Policy, ScoreModel, train_bpe};
use saddle_training::config::{Critics, PrecisionSection, RunSection, ShapeSection, SpecialTokens, TrainConfig};
use saddle_training::{
    CriticSet, Judges, Learner, Observer, PolicyModel, Ptx, Scorer, decode_settings, train_synchronously,
};
use tch::{Device, Kind};

/// The model that `--tiny` stands for.
const TINY: ShapeSection =
    ShapeSection { layers: 4, hidden: 128, intermediate: 352, heads: 4, key_value_heads: None, max_tokens: 512 };
const TINY_VOCABULARY: usize = 512;
/// Lengths of the responses of a long-tailed mix, as parts of the longest; none is below four tokens.
const TAIL: [f64; 8] = [0.125, 0.125, 0.25, 0.25, 0.375, 0.5, 0.75, 1.0];
/// Iterations before the clock starts.
const WARM_UP: u64 = 1;
/// Parts of an iteration, as the schedule names them.
const PARTS: [&str; 3] = ["generate_seconds", "score_seconds", "learn_seconds"];
/// Parts of the last part.
const LEARN_PARTS: [&str; 5] =
    ["logprob_seconds", "value_seconds", "policy_seconds", "critic_seconds", "optimizer_seconds"];

pub(in crate::commands) fn train(args: &BenchTrainArgs) -> Result<(), Failure> {
    for (option, count) in [
        ("--prompts", args.prompts),
        ("--prompt-tokens", args.prompt_tokens),
        ("--new-tokens", args.new_tokens),
        ("--iterations", args.iterations),
    ] {
        if !(1..=1 << 20).contains(&count) {
            return Err(Failure::usage(format!("{option}: out of range; --help says what it is")));
        }
    }
    let config = config(args)?;
    let device = run::device(&config.run)?;
    let policy = policy(args, config.run.seed, device)?;
    let (read, longest) = (args.prompt_tokens + args.new_tokens, policy.config().max_position_embeddings);
    if read > longest {
        return Err(Failure::usage(format!(
            "--prompt-tokens and --new-tokens make {read} tokens, the model reads {longest}"
        )));
    }
    let scorer = |kind, seed| {
        let weights = policy.parameters().to_map();
        let model = ScoreModel::on_trunk(policy.config().clone(), &weights, 1, seed, device)?;
        let model = model.kept(config.precision.frozen.kind(), device)?.in_precision(config.precision.scoring);
        // A scorer has a tokenizer; on random prompts nothing is read with it.
        let tokenizer = train_bpe(std::iter::once("a text"), TINY_VOCABULARY)?;
        Ok::<_, Failure>(Scorer { model, tokenizer, kind, normalizer: None, score_range: None })
    };
    let judges = Judges {
        reference: policy
            .snapshot()?
            .kept(config.precision.frozen.kind(), device)?
            .in_precision(config.precision.scoring),
        reward: scorer(ModelKind::Reward, 1)?,
        costs: vec![scorer(ModelKind::Cost, 2)?],
    };
    let scorers = [&judges.reward.model, &judges.costs[0].model];
    let critics = CriticSet::new(&config.critics, None, &scorers, config.run.seed, device)?;
    let (length, vocabulary) = (args.prompt_tokens as u64, policy.config().vocab_size as u64);
    let prompt = |ordinal: PromptOrdinal| Prompt {
        ordinal,
        tokens: (0..length).map(|place| ((ordinal.0 * 7919 + place * 104_729 + 5) % vocabulary) as i64).collect(),
        kind: None,
    };
    let mut clock = Clock::default();
    let mut settings = decode_settings(&config, Vec::new());
    if args.tail {
        settings.limits = TAIL.iter().map(|part| ((args.new_tokens as f64 * part) as usize).max(4)).collect();
    }
    let floor = floor(args, &policy, &critics.trained_numbers(), &settings.limits)?;
    let mut learner = Learner::new(config.clone(), policy, critics, Ptx::default())?;
    train_synchronously(&config, &mut learner, &judges, settings, prompt, &mut clock)?;
    let names = PARTS.iter().chain(&LEARN_PARTS).enumerate();
    let part = |part: usize| super::median(clock.rows.iter().map(|row| row[part]).collect());
    let mut figures: Vec<(String, f64)> = names.map(|(index, name)| ((*name).to_owned(), part(index))).collect();
    let iteration = super::median(clock.rows.iter().map(|row| row[..PARTS.len()].iter().sum()).collect());
    figures.push(("iteration_seconds".to_owned(), iteration));
    figures.push(("samples_per_second".to_owned(), args.prompts as f64 / iteration));
    figures.push(("floor_seconds".to_owned(), floor));
    figures.push(("times_floor".to_owned(), iteration / floor));
    print_result(args.json, &[], &figures);
    Ok(())
}

/// Seconds that an iteration takes at least: its matrix products at the rate of a large one, and what decoding and the optimisers
/// read and write, at the memory bandwidth, both measured here. The head runs at response tokens alone; a backward pass makes
/// twice the operations of a forward pass; a step of AdamW reads and writes weights, gradients and two moments.
fn floor(args: &BenchTrainArgs, policy: &Policy, critic_numbers: &[usize], limits: &[usize]) -> Result<f64, Failure> {
    let (device, kind) = (policy.device(), saddle_lm::Precision::from(args.precision).kind());
    let (bandwidth, rate) = (peaks::read_bytes_per_second(device)?, peaks::product_flops_per_second(device, kind)?);
    let config = policy.config();
    let (numbers, head) = (super::decode::product_weights(policy), config.vocab_size * config.hidden_size);
    let trunk = (numbers - head) as f64;
    let lengths: Vec<usize> = (0..args.prompts)
        .map(|prompt| prompt.checked_rem(limits.len()).map_or(args.new_tokens, |turn| limits[turn]))
        .collect();
    let responses = lengths.iter().sum::<usize>() as f64;
    let prompts = (args.prompts * args.prompt_tokens) as f64;
    let step = |place: usize| {
        let rows = lengths.iter().filter(|length| **length > place).count();
        let bytes = (numbers * kind.elt_size_in_bytes()) as f64;
        (bytes / bandwidth).max(2.0 * (numbers * rows) as f64 / rate)
    };
    let generation = 2.0 * prompts * trunk / rate + (1..args.new_tokens).map(step).sum::<f64>();
    // Reference, reward and cost model forward; policy and critics forward and backward.
    let passes = 3.0 + 3.0 + 3.0 * critic_numbers.len() as f64;
    let products = 2.0 * (passes * trunk * (prompts + responses) + 4.0 * head as f64 * responses) / rate;
    let trained = policy.parameters().count() + critic_numbers.iter().sum::<usize>();
    Ok(generation + products + (trained * 8 * Kind::Float.elt_size_in_bytes()) as f64 / bandwidth)
}

/// A recipe that does what `args` ask for, once an iteration.
fn config(args: &BenchTrainArgs) -> Result<TrainConfig, Failure> {
    let recipe = r#"
        policy.from = ""
        reward_model.from = ""
        constraints.cost.from = ""
        prompts.train = []
    "#;
    let mut config: TrainConfig = toml::from_str(recipe).map_err(Failure::run)?;
    config.run = RunSection { device: args.device.clone(), threads: args.threads, ..config.run };
    config.generation.max_new_tokens = args.new_tokens;
    config.generation.rows = args.prompts;
    let precision = args.precision.into();
    config.precision =
        PrecisionSection { generation: precision, scoring: precision, learning: precision, frozen: precision };
    config.ppo.updates = WARM_UP + args.iterations as u64;
    config.ppo.batch_rollouts = args.prompts;
    config.ppo.workers = args.workers;
    config.critics.layout = match args.critics {
        CriticLayout::Separate => Critics::Separate,
        CriticLayout::TwoHeaded => Critics::TwoHeaded,
    };
    Ok(config)
}

/// The policy that training starts from.
fn policy(args: &BenchTrainArgs, seed: u64, device: Device) -> Result<Policy, Failure> {
    match &args.model {
        Some(path) => Ok(PolicyModel::load(path, device)?.policy),
        None => Ok(Policy::fresh(TINY.decoder(TINY_VOCABULARY, SpecialTokens::default()), seed, device)?),
    }
}

/// Seconds of the parts of each iteration after the first ones.
#[derive(Default)]
struct Clock {
    rows: Vec<Vec<f64>>,
}

impl Observer for Clock {
    fn step(&mut self, step: u64, _steps: u64, metrics: &[(String, f64)]) {
        if step > WARM_UP {
            let part = |name| metrics.iter().find(|(each, _)| each == name).map_or(f64::NAN, |(_, value)| *value);
            self.rows.push(PARTS.into_iter().chain(LEARN_PARTS).map(part).collect());
        }
    }

    fn note(&mut self, _message: &str) {}
}
