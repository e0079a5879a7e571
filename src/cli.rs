//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Trains language models to be helpful and harmless: Safe RLHF with a Lagrange multiplier.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the whole method on the embedded world and write a report.
    Demo(DemoArgs),
    /// Fine-tune a policy on demonstrations.
    Sft(StageArgs),
    /// Train a reward model from pairs that say which response is better.
    RewardModel(StageArgs),
    /// Train a cost model from pairs that say which response is safer.
    CostModel(StageArgs),
    /// Train a policy from pairs that say which response is better, without a reward model.
    Dpo(StageArgs),
    /// Train a policy by PPO-Lagrangian: more reward, with expected cost under a limit.
    Train(TrainArgs),
    /// Compare the policy of a training run with the one that it began as, on other prompts, and write the run's report.
    Evaluate(EvaluateArgs),
    /// Bring a model in: a GGUF file or a Hugging Face directory becomes a model directory.
    Import(ImportArgs),
    /// Write a model for other programs: safetensors, config.json and tokenizer, as transformers loads them.
    Export(ExportArgs),
    /// Answer prompts: JSONL in, JSONL out.
    Generate(GenerateArgs),
    /// Score prompts with their responses: JSONL in, JSONL out.
    Score(ScoreArgs),
    /// Write the embedded world's data sets and tokenizer to a directory.
    World(WorldArgs),
    /// Judge answers to the embedded world's prompts by its gold scores: JSONL in, JSONL out.
    Judge(JudgeArgs),
    /// Measure the system itself.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Say what this machine has, and the remedy for what it lacks.
    Doctor(DoctorArgs),
    /// Print configs/reference.md: every key that a recipe may have.
    #[command(hide = true)]
    ConfigReference,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Rollouts a second with several numbers of generators and scorers, against what is possible; over engines that only
    /// take time.
    Throughput(ThroughputArgs),
    /// How long stages that panic or hang at random take to work again; over engines that only take time.
    Faults(FaultsArgs),
    /// Tokens a second of greedy decoding, against what memory and arithmetic allow.
    Decode(DecodeArgs),
    /// Seconds of whole iterations of policy training, on random prompts and score heads.
    Train(BenchTrainArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BenchTrainArgs {
    /// The model directory of the policy, whose size the other models are of too.
    #[arg(long, value_name = "DIR", required_unless_present = "tiny", conflicts_with = "tiny")]
    pub(crate) model: Option<PathBuf>,
    /// 4 layers of width 128 and a vocabulary of 512, with random weights.
    #[arg(long)]
    pub(crate) tiny: bool,
    /// `cpu`, or `cuda:0` for the first GPU.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// CPU threads for one tensor operation; 0 means one for each core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Prompts of an iteration, each with one response.
    #[arg(long, default_value_t = 32)]
    pub(crate) prompts: usize,
    /// Length of each prompt.
    #[arg(long, default_value_t = 32)]
    pub(crate) prompt_tokens: usize,
    /// Length of each response.
    #[arg(long, default_value_t = 64)]
    pub(crate) new_tokens: usize,
    /// Give responses limits from an eighth of that length to all of it, half of them a quarter or less: a long-tailed mix.
    #[arg(long)]
    pub(crate) tail: bool,
    /// One critic for each stream, or one with two heads.
    #[arg(long, default_value = "separate")]
    pub(crate) critics: CriticLayout,
    /// What the matrix products are computed in.
    #[arg(long, default_value = "f32")]
    pub(crate) precision: Precision,
    /// Threads that each learn from a share of the rollouts, as `ppo.workers` has it.
    #[arg(long, default_value_t = 1, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=256))]
    pub(crate) workers: usize,
    /// Iterations to measure, after one that is not; medians are shown.
    #[arg(long, default_value_t = 5)]
    pub(crate) iterations: usize,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How values are estimated.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum CriticLayout {
    /// A critic for the reward stream and one for the cost stream.
    Separate,
    /// One critic with a head for each.
    TwoHeaded,
}

#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Numbers of sequences decoded together.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    pub(crate) batch: Vec<usize>,
    /// Length of each prompt, of tokens drawn at random.
    #[arg(long, default_value_t = 64)]
    pub(crate) prompt_tokens: usize,
    /// Length of each response.
    #[arg(long, default_value_t = 64)]
    pub(crate) new_tokens: usize,
    /// What matrix products are computed in.
    #[arg(long, default_value = "f32")]
    pub(crate) precision: Precision,
    /// Times that everything is measured; medians are shown.
    #[arg(long, default_value_t = 5)]
    pub(crate) repeats: usize,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ThroughputArgs {
    /// Numbers of generators.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16")]
    pub(crate) generators: Vec<usize>,
    /// Numbers of scorers of each lane: of the reward, of the cost, of the reference.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub(crate) scorers: Vec<usize>,
    /// Updates to measure over.
    #[arg(long, default_value_t = 20)]
    pub(crate) updates: u64,
    /// Rollouts for one update.
    #[arg(long, default_value_t = 128)]
    pub(crate) batch: usize,
    /// Versions that a rollout may be old; several to compare.
    #[arg(long, value_delimiter = ',', default_value = "2")]
    pub(crate) staleness: Vec<usize>,
    /// Responses that a generator works on at once.
    #[arg(long, default_value_t = 16)]
    pub(crate) slots: usize,
    /// Mean length of a response; lengths are between half of it and one and a half times it.
    #[arg(long, default_value_t = 32)]
    pub(crate) tokens: usize,
    /// Time of a decoding step, whatever it serves.
    #[arg(long, default_value_t = 2.0)]
    pub(crate) step_milliseconds: f64,
    /// Time that a scorer takes for one response.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) score_milliseconds: f64,
    /// Time of an update.
    #[arg(long, default_value_t = 50.0)]
    pub(crate) update_milliseconds: f64,
    /// Draw the rates over the generators into this SVG file.
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FaultsArgs {
    /// Faults in all, spread evenly over the kinds of stages; a third of them are hangs.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) faults: u64,
    /// Seed of the faults' places.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What every training stage takes.
#[derive(Debug, Args)]
pub(crate) struct StageArgs {
    /// The recipe, a TOML file; see configs/.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Override a key of the recipe, such as `optimizer.learning_rate=1e-4`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// The run directory to make; runs/STAGE unless given.
    #[arg(long, value_name = "DIR")]
    pub(crate) run: Option<PathBuf>,
    /// Use a run directory that is not empty; what this stage writes is replaced.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Check the configuration, and that its files, models and device are there; print it with its defaults, and stop.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) stage: StageArgs,
    /// With --dry-run: the shape, a config.json, of models that are not there yet, so that memory can be estimated.
    #[arg(long, value_name = "FILE", requires = "dry_run")]
    pub(crate) shape: Option<PathBuf>,
    /// With --dry-run: refuse a run that needs more memory on a device than this, by the estimate.
    #[arg(long, value_name = "GIB", requires = "dry_run")]
    pub(crate) device_memory_gib: Option<f64>,
    /// Exit with code 5 if a limit is broken at the end; the run and its models are kept.
    #[arg(long)]
    pub(crate) require_limit: bool,
    /// Of a run on the embedded world in this directory: write the gold scores of its rollouts among the metrics. The learner
    /// does not see them.
    #[arg(long, value_name = "DIR")]
    pub(crate) world: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct EvaluateArgs {
    /// The run of `saddle train`. Its models are looked for where its configuration names them.
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// Prompts that the run did not train on: JSONL as a source of format "prompts".
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: PathBuf,
    /// Answers of each policy, to the prompts in turn; one to each prompt unless given.
    #[arg(long, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) responses: Option<usize>,
    /// Always take the likeliest token, instead of sampling as the run did.
    #[arg(long)]
    pub(crate) greedy: bool,
    /// The constraint whose cost is measured, where the run has several.
    #[arg(long, value_name = "NAME")]
    pub(crate) constraint: Option<String>,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Every random number of the demo follows from it.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Override a key of the demo's recipe (`saddle demo --dry-run` prints it); may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// The run directory to make.
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    pub(crate) run: PathBuf,
    /// Refuse a run directory that is not empty, instead of replacing what the demo writes there.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Check the configuration, print it with its defaults, and stop.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Where JSONL comes from and goes to.
#[derive(Debug, Args)]
pub(crate) struct StreamArgs {
    /// JSONL to read; standard input unless given.
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// JSONL to write; standard output unless given.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// The model that a stream goes through, and what computes.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// The model directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// `cpu`, or `cuda:0` for the first GPU.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// CPU threads for one tensor operation; 0 means one for each core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) stream: StreamArgs,
    /// Always take the likeliest token.
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p"])]
    pub(crate) greedy: bool,
    /// Logits are divided by it.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) temperature: f64,
    /// Sample from the k likeliest tokens only; 0 means all.
    #[arg(long, default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Sample from the likeliest tokens that hold this much probability only.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) top_p: f64,
    /// A response ends after so many tokens.
    #[arg(long, default_value_t = 128)]
    pub(crate) max_new_tokens: usize,
    /// Sequences decoded at once.
    #[arg(long, default_value_t = 32)]
    pub(crate) rows: usize,
    /// Answers to each prompt, which is read once for all of them; they follow one another in the output.
    #[arg(long, default_value_t = 1)]
    pub(crate) samples: usize,
    /// What matrix products are computed in.
    #[arg(long, default_value = "f32")]
    pub(crate) precision: Precision,
    /// Seed of the samples.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) stream: StreamArgs,
    /// At most so many tokens go through the model at once.
    #[arg(long, default_value_t = 8192)]
    pub(crate) micro_batch_tokens: usize,
    /// Instead of scores, how likely a policy finds each response: log-probabilities of its tokens, in nats.
    #[arg(long)]
    pub(crate) log_probs: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A .gguf file, or a directory with config.json, safetensors and tokenizer.
    #[arg(value_name = "SOURCE")]
    pub(crate) source: PathBuf,
    /// What the model is for, where it does not say so itself.
    #[arg(long)]
    pub(crate) kind: Option<Kind>,
    /// How weights are stored.
    #[arg(long, default_value = "f32")]
    pub(crate) dtype: Dtype,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// A model directory, or a run: RUN for its trained model, RUN@best for the best one that kept every limit.
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// Of a run: refuse, with exit code 5, a model whose mean cost on held-out prompts was not under every limit with 95 %
    /// confidence.
    #[arg(long)]
    pub(crate) require_limit: bool,
    /// Adapters to merge into the model: a run's `adapter`, or a directory in PEFT's layout.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// How weights are stored; as they are, unless given.
    #[arg(long)]
    pub(crate) dtype: Option<Dtype>,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
}

/// Where a model is written to.
#[derive(Debug, Args)]
pub(crate) struct TargetArgs {
    /// The directory to write.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Use a directory that is not empty; files of a model there are replaced.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a model is for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// It answers prompts.
    Policy,
    /// It scores how helpful an answer is.
    Reward,
    /// It scores how harmful an answer is; above 0 means unsafe.
    Cost,
}

/// Number types of stored weights.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Dtype {
    /// float32.
    F32,
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
}

/// Number types of matrix products.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Precision {
    /// float32.
    F32,
    /// bfloat16, with sums in float32.
    Bf16,
}

impl From<Precision> for saddle_lm::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct WorldArgs {
    /// The directory to write.
    #[arg(long, value_name = "DIR", default_value = "runs/world")]
    pub(crate) out: PathBuf,
    /// Seed of the world's data.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct JudgeArgs {
    /// The directory of the world, as `saddle world` wrote it.
    #[arg(long, value_name = "DIR")]
    pub(crate) world: PathBuf,
    #[command(flatten)]
    pub(crate) stream: StreamArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// A recipe of `saddle train`: print the stages and edges of its run as well, and the memory that it needs.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub(crate) config: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
