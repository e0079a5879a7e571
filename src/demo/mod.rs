//! `saddle demo`: the whole method on the embedded world, whose gold scores tell how well it went.

mod evaluation;
mod recipe;
mod result;

use crate::cli::DemoArgs;
use crate::console::say;
use crate::evaluation::gold_means;
use crate::failure::Failure;
use crate::stages::{Watch, policy_training, score_model, supervised};
use crate::table::print;
use crate::{interrupt, run};
use evaluation::evaluate;
pub(crate) use recipe::DemoConfig;
use result::DemoResult;
use saddle_data::world::World;
use saddle_data::{BadRowPolicy, Format, Source, read_preferences};
use saddle_lm::ModelKind;
use saddle_store::RunDirectory;

/// Runs the demo and prints its result.
pub(crate) fn demo(args: &DemoArgs) -> Result<(), Failure> {
    let config = DemoConfig::load(&args.run, args.seed, &args.overrides)?;
    if args.dry_run {
        print(run::to_toml(&config)?);
        return Ok(());
    }
    interrupt::listen()?;
    let run = run::begin(&args.run, !args.keep, &config)?;
    let world = World::new(config.world.clone())?;
    world.write(&run.path().join("world"))?;

    let stage = |name: &str, section: &dyn Fn(&RunDirectory) -> Result<String, Failure>| {
        let directory = RunDirectory::overwrite(run.path().join(name))?;
        directory.write_config(&section(&directory)?)?;
        Ok::<_, Failure>(directory)
    };
    let sft = stage("sft", &|_| run::to_toml(&config.sft))?;
    let sft_figures = supervised(&config.sft, &sft)?;
    sft.complete()?;
    let reward = stage("reward-model", &|_| run::to_toml(&config.reward_model))?;
    let reward_figures = score_model(ModelKind::Reward, &config.reward_model, &reward)?;
    reward.complete()?;
    let cost = stage("cost-model", &|_| run::to_toml(&config.cost_model))?;
    let cost_figures = score_model(ModelKind::Cost, &config.cost_model, &cost)?;
    cost.complete()?;
    let train = stage("train", &|_| run::to_toml(&config.train))?;
    let watch: Watch<'_> = &|row, rollouts, tokenizer| gold_means(&world, row, rollouts, tokenizer);
    let trained = policy_training(&config.train, &train, Some(watch))?;
    train.complete()?;

    say("   evaluation answering the held-out prompts with the model before and after");
    let responses = evaluate(&config, &world, &run)?;
    run.write_responses(&responses)?;
    let held_out = read_preferences(
        &[Source::new(run.path().join("world/preferences.valid.jsonl"), Format::Pku)],
        BadRowPolicy::Error,
        0,
    )?;
    let result = DemoResult::new(
        &world,
        config.cost_limit(),
        &responses,
        [sft_figures, reward_figures, cost_figures],
        &world.annotator_ceiling(&held_out.rows),
    );
    run.write_report(&result.report(&config, &run, &train, responses)?)?;
    result.write(&run)?;
    run.complete()?;
    if args.json {
        print(result.to_json());
    } else {
        print(result.table());
        print("");
        trained.details.iter().for_each(|(name, text)| print(format!("{name}: {text}")));
        print(format!("\nreport: {}", run.report_path().display()));
    }
    Ok(())
}
