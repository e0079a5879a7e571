//! `saddle train`. A dry run shows, as comments below the recipe, the stages and edges of the asynchronous schedule, and
//! what the run needs in memory.

use super::{dry_run, stage};
use crate::cli::TrainArgs;
use crate::evaluation::gold_means;
use crate::failure::Failure;
use crate::stages::Watch;
use crate::{config, run, stages};
use saddle_actors::Plan;
use saddle_core::{PromptOrdinal, ScoredRollout};
use saddle_data::PromptRow;
use saddle_data::world::World;
use saddle_lm::{CONFIG_FILE, DecoderConfig, Tokenizer};
use saddle_training::config::TrainConfig;
use saddle_training::{MemoryPlan, RunShapes};
use std::path::Path;

const GIB: f64 = (1u64 << 30) as f64;

pub(super) fn train(args: &TrainArgs) -> Result<(), Failure> {
    let world = args.world.as_deref().map(World::load).transpose()?;
    let judged = world.as_ref().map(|world| {
        move |row: &dyn Fn(PromptOrdinal) -> PromptRow, rollouts: &[ScoredRollout], tokenizer: &Tokenizer| {
            gold_means(world, row, rollouts, tokenizer)
        }
    });
    let watch = judged.as_ref().map(|judged| judged as Watch<'_>);
    if !args.stage.dry_run {
        let train = |config: &TrainConfig, run: &_| stages::policy_training(config, run, watch);
        let result = stage(&args.stage, "train", train)?;
        return match result.broken.filter(|_| args.require_limit) {
            Some(verdict) => Err(Failure::LimitBroken(verdict)),
            None => Ok(()),
        };
    }
    let config: TrainConfig = config::load(&args.stage.config, &args.stage.overrides)?;
    let layout = layout(&config, args.shape.as_deref(), args.device_memory_gib)?;
    dry_run(&args.stage, &config, Some(&layout))?;
    // Of models that are to come, a shape tells enough.
    if args.shape.is_none() { run::require_inputs(&config) } else { Ok(()) }
}

/// The stages and edges of a run, where it is asynchronous, and the memory that it needs; refuses one that needs more than
/// `device_gib` somewhere.
pub(super) fn layout(config: &TrainConfig, shape: Option<&Path>, device_gib: Option<f64>) -> Result<String, Failure> {
    let memory = match (shapes(config, shape), device_gib) {
        (Ok(shapes), device_gib) => {
            let plan = MemoryPlan::new(config, &shapes)?;
            format!("{plan}{}", room(&plan, device_gib)?)
        }
        (Err(Failure::Usage(reason)), None) => format!("memory is not estimated: {reason}"),
        (Err(failure), _) => return Err(failure),
    };
    let plan = if config.is_asynchronous() { Plan::from(config).to_string() } else { String::new() };
    Ok(plan + &memory)
}

/// The shapes of the models that `config` names; `assumed` is that of those that are not there yet.
fn shapes(config: &TrainConfig, assumed: Option<&Path>) -> Result<RunShapes, Failure> {
    let assumed = assumed.map(DecoderConfig::read).transpose()?;
    let shape = |model: &Path| {
        let path = model.join(CONFIG_FILE);
        match &assumed {
            Some(assumed) if !path.is_file() => Ok(assumed.clone()),
            None if !path.is_file() => Err(Failure::usage(format!(
                "there is no {}; --shape FILE gives the shape of models that are to come",
                path.display()
            ))),
            _ => Ok(DecoderConfig::read(&path)?),
        }
    };
    Ok(RunShapes {
        policy: shape(&config.policy.from)?,
        reward: shape(&config.reward_model.from)?,
        costs: config.constraints.values().map(|each| shape(&each.from)).collect::<Result<_, _>>()?,
    })
}

/// Says that every device has room for a plan; refuses one that needs more than `device_gib` somewhere.
fn room(plan: &MemoryPlan, device_gib: Option<f64>) -> Result<String, Failure> {
    let Some(device_gib) = device_gib else { return Ok(String::new()) };
    let full = plan.devices().into_iter().find(|(_, bytes)| *bytes as f64 > device_gib * GIB);
    let Some((device, bytes)) = full else { return Ok(format!("fits: every device has {device_gib} GiB")) };
    let needed = bytes as f64 / GIB;
    Err(Failure::usage(format!(
        "{device} has {device_gib} GiB, and the run needs about {needed:.2}:\n{plan}lower generation.rows or ppo.micro_batch_tokens, share a critic by critics.layout = \"two_headed\", train adapters by [lora], or keep frozen weights by precision.frozen = \"bf16\""
    )))
}
