//! One function a command: arguments in, work done, result printed.

mod bench;
mod evaluate;
mod export;
mod generate;
mod import;
mod judge;
mod score;
mod stream;
mod train;

use crate::cli::{BenchCommand, Cli, Command, DoctorArgs, StageArgs, WorldArgs};
use crate::failure::Failure;
use crate::stages::StageResult;
use crate::table::{print, print_result};
use crate::{config, demo, interrupt, reference, run, stages};
use saddle_data::world::{World, WorldConfig};
use saddle_lm::ModelKind;
use saddle_store::RunDirectory;
use saddle_training::config::{DpoConfig, PreferenceConfig, SftConfig, Validate};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Does what the command line asks for.
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Demo(args) => demo::demo(&args),
        Command::Sft(args) => stage(&args, "sft", |config: &SftConfig, run| stages::supervised(config, run)).map(drop),
        Command::RewardModel(args) => stage(&args, "reward-model", |config: &PreferenceConfig, run| {
            stages::score_model(ModelKind::Reward, config, run)
        })
        .map(drop),
        Command::CostModel(args) => stage(&args, "cost-model", |config: &PreferenceConfig, run| {
            stages::score_model(ModelKind::Cost, config, run)
        })
        .map(drop),
        Command::Dpo(args) => {
            stage(&args, "dpo", |config: &DpoConfig, run| stages::direct_preference(config, run)).map(drop)
        }
        Command::Train(args) => train::train(&args),
        Command::Evaluate(args) => evaluate::evaluate(&args),
        Command::Import(args) => import::import(&args),
        Command::Export(args) => export::export(&args),
        Command::Generate(args) => generate::generate(&args),
        Command::Score(args) => score::score(&args),
        Command::World(args) => world(&args),
        Command::Judge(args) => judge::judge(&args),
        Command::Bench(BenchCommand::Throughput(args)) => bench::throughput(&args),
        Command::Bench(BenchCommand::Faults(args)) => bench::faults(&args),
        Command::Bench(BenchCommand::Decode(args)) => bench::decode(&args),
        Command::Bench(BenchCommand::Train(args)) => bench::train(&args),
        Command::Doctor(args) => doctor(&args),
        Command::ConfigReference => {
            print(reference::markdown());
            Ok(())
        }
    }
}

/// Runs one training stage in a run directory of its own and prints what it came to. Of a dry run nothing comes.
fn stage<C: Serialize + DeserializeOwned + JsonSchema + Validate, R: Into<StageResult>>(
    args: &StageArgs,
    name: &str,
    train: impl FnOnce(&C, &RunDirectory) -> Result<R, Failure>,
) -> Result<StageResult, Failure> {
    let config: C = config::load(&args.config, &args.overrides)?;
    if args.dry_run {
        dry_run(args, &config, None)?;
        run::require_inputs(&config)?;
        return Ok(StageResult::default());
    }
    interrupt::listen()?;
    let path = args.run.clone().unwrap_or_else(|| PathBuf::from("runs").join(name));
    let run = run::begin_apart_from_inputs(&path, args.overwrite, &config)?;
    let result: StageResult = match train(&config, &run) {
        Ok(result) => result.into(),
        Err(failure) => {
            // What failed first is what there is to tell.
            let _ = if run.model_path().is_dir() { run.complete() } else { run.remove_unless_begun() };
            return Err(failure);
        }
    };
    run.complete()?;
    let peak = saddle_store::peak_memory_bytes();
    let mut details =
        vec![("model", run.model_path().display().to_string()), ("weights_hash", weights_hash(&run.model_path())?)];
    if run.adapter_path().is_dir() {
        details.push(("adapter", run.adapter_path().display().to_string()));
    }
    details.extend(peak.map(|bytes| ("peak_memory_bytes", bytes.to_string())));
    details.extend(result.details.iter().cloned());
    print_result(args.json, &details, &result.figures);
    Ok(result)
}

/// Prints a recipe with its defaults and, as comments, the plan of its run; or both as JSON.
fn dry_run(args: &StageArgs, config: &impl Serialize, plan: Option<&str>) -> Result<(), Failure> {
    if args.json {
        print(serde_json::json!({ "config": config, "plan": plan }));
        return Ok(());
    }
    print(run::to_toml(config)?);
    plan.iter().flat_map(|plan| plan.lines()).for_each(|line| print(format!("# {line}")));
    Ok(())
}

/// SHA-256 over the names, shapes and bytes of the tensors of a model directory.
fn weights_hash(model: &Path) -> Result<String, Failure> {
    let tensors = saddle_lm::read_safetensors(&model.join(saddle_lm::WEIGHTS_FILE), tch::Device::Cpu)?;
    Ok(saddle_lm::sha256_of_tensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))?)
}

fn world(args: &WorldArgs) -> Result<(), Failure> {
    World::new(WorldConfig { seed: args.seed, ..WorldConfig::default() })?.write(&args.out)?;
    print(format!("the world of seed {} is in {}", args.seed, args.out.display()));
    Ok(())
}

fn doctor(args: &DoctorArgs) -> Result<(), Failure> {
    let layout =
        args.config.as_ref().map(|recipe| train::layout(&config::load(recipe, &[])?, None, None)).transpose()?;
    let examination = saddle_doctor::examine(env!("CARGO_PKG_VERSION"), None);
    if args.json {
        print(serde_json::to_string(&examination).map_err(Failure::run)?);
    } else {
        print(&examination);
    }
    layout.iter().for_each(print);
    match examination.status() {
        saddle_doctor::Status::Missing => {
            Err(Failure::Environment("something that is needed is missing; the remedies are above".to_owned()))
        }
        _ => Ok(()),
    }
}
