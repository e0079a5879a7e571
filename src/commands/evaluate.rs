//! `saddle evaluate`: the policy of a training run against the one that it began as, on prompts that neither has seen.

use super::stream::say_notices;
use crate::cli::EvaluateArgs;
use crate::console::say;
use crate::evaluation::{Comparison, Examiner};
use crate::failure::Failure;
use crate::table::{print, table};
use crate::{config, run};
use saddle_data::{BadRowPolicy, Format, PromptRow, Source, read_prompts};
use saddle_report::ReportInput;
use saddle_store::{Decoding, ResponseRecord, RunDirectory, read_evaluations, read_metrics};
use saddle_training::config::TrainConfig;
use saddle_training::{PolicyModel, encode_prompt};
use serde_json::json;

/// Names of the two policies in the records.
const BEFORE: &str = "before";
const AFTER: &str = "trained";

pub(super) fn evaluate(args: &EvaluateArgs) -> Result<(), Failure> {
    let run = RunDirectory::open(&args.run)?;
    let config: TrainConfig = config::load(&run.config_path(), &[])?;
    let constraint = constraint(&config, args.constraint.as_deref())?;
    let examiner = Examiner::load(&config, constraint)?;
    let device = run::device(&config.run)?;
    let decoding = if args.greedy { Decoding::Greedy } else { Decoding::Sampled };
    let mut responses: Vec<ResponseRecord> = Vec::new();
    let mut left_out = LeftOut::default();
    for (name, path) in [(BEFORE, &config.policy.from), (AFTER, &run.model_path())] {
        let model = PolicyModel::load(path, device)?;
        say_notices(&model.tokenizer);
        let (rows, left) = prompts(args, &config, &model)?;
        left_out = left;
        let count = args.responses.unwrap_or(rows.len());
        say(format!("     evaluate {count} answers of {} to {} prompts{left_out}", path.display(), rows.len()));
        let answers = examiner.answers(name, (&model.policy, &model.tokenizer), &rows, (decoding, count))?;
        responses.extend(answers.into_iter().map(|answer| answer.record));
    }
    run.write_responses(&responses)?;
    let limit = config.constraints[constraint].dual.cost_limit;
    let (before, after) = (Comparison::of(&responses, BEFORE), Comparison::of(&responses, AFTER));
    let summary = Comparison::summary(&before, &after, limit);
    let heading = ["held-out prompts", "before", "after", ""];
    let rows = summary.iter().map(|row| [&row.label, &row.before, &row.after, &row.note].map(String::clone).to_vec());
    let shown = table(&heading, &rows.collect::<Vec<_>>());
    run.write_report(&saddle_report::render(&ReportInput {
        title: "PPO-Lagrangian".to_owned(),
        subtitle: format!("{}: {constraint} limit {limit:.2}, seed {}", run.path().display(), config.run.seed),
        before: BEFORE.to_owned(),
        after: AFTER.to_owned(),
        summary,
        stages: Vec::new(),
        updates: read_metrics(&run.metrics_path())?,
        evaluations: read_evaluations(&run.evaluations_path())?,
        constraint: constraint.to_owned(),
        cost_limit: limit,
        responses,
        config_toml: run::to_toml(&config)?,
        machine: run::machine(),
        command: format!("saddle train --config {}", run.config_path().display()),
    }))?;
    let report = run.report_path();
    if args.json {
        let report = report.display().to_string();
        print(json!({
            "before": before, "trained": after, "cost_limit": limit, "report": report,
            "too_long_prompts": left_out.too_long, "repeated_prompts": left_out.repeated,
        }));
    } else {
        print(format!("{shown}\n\nreport: {}", report.display()));
    }
    Ok(())
}

/// The constraint to measure: the one that is asked for, or the only one.
fn constraint<'a>(config: &'a TrainConfig, asked: Option<&'a str>) -> Result<&'a str, Failure> {
    let names: Vec<&str> = config.constraints.keys().map(String::as_str).collect();
    match (asked, names.as_slice()) {
        (None, [only]) => Ok(only),
        (Some(name), names) if names.contains(&name) => Ok(name),
        (_, names) => Err(Failure::usage(format!("--constraint: name one of {}", names.join(", ")))),
    }
}

/// Prompts that are not asked.
#[derive(Clone, Copy, Default)]
struct LeftOut {
    /// Those longer than `max_tokens`.
    too_long: usize,
    max_tokens: usize,
    /// Those that stand in the file already.
    repeated: u64,
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.too_long > 0 {
            write!(out, "; left out {} of more than {} tokens", self.too_long, self.max_tokens)?;
        }
        if self.repeated > 0 {
            write!(out, "; left out {} that stand there already", self.repeated)?;
        }
        Ok(())
    }
}

/// The prompts that are as short as those that the policy was trained on, and how many are not.
fn prompts(
    args: &EvaluateArgs,
    config: &TrainConfig,
    model: &PolicyModel,
) -> Result<(Vec<PromptRow>, LeftOut), Failure> {
    let source = Source::new(&args.prompts, Format::Prompts);
    let mut rows = Vec::new();
    let read = read_prompts(&[source], BadRowPolicy::Error, config.run.seed)?;
    let max_tokens = config.prompts.max_tokens;
    let mut left_out = LeftOut { max_tokens, repeated: read.duplicates, too_long: 0 };
    for row in read.rows {
        if encode_prompt(&model.tokenizer, &row.prompt)?.len() <= max_tokens {
            rows.push(row);
        } else {
            left_out.too_long += 1;
        }
    }
    if rows.is_empty() {
        return Err(Failure::usage(format!(
            "{}: no prompt has at most prompts.max_tokens = {} tokens",
            args.prompts.display(),
            max_tokens
        )));
    }
    Ok((rows, left_out))
}
