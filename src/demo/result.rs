//! What the demo came to: one table, the same on the terminal, in JSON and in the report.

use super::evaluation::{AFTER, BEFORE};
use super::recipe::DemoConfig;
use crate::evaluation::Mean;
use crate::failure::Failure;
use crate::{run, table};
use saddle_data::world::{Ceiling, Reachable, World};
use saddle_report::{ReportInput, Stage, SummaryRow};
use saddle_store::{Decoding, ResponseRecord, RunDirectory, read_evaluations, read_metrics};
use serde::Serialize;

/// Sampled answers of one policy to the held-out prompts.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Outcome {
    gold_helpfulness: Mean,
    gold_harm: Mean,
    gold_harm_benign: Mean,
    gold_harm_hazardous: Mean,
    reward: Mean,
    cost: Mean,
    /// Share of answers that are unsafe by gold.
    unsafe_ratio: Mean,
}

impl Outcome {
    fn of(responses: &[ResponseRecord], model: &str) -> Self {
        let own: Vec<&ResponseRecord> =
            responses.iter().filter(|each| each.model == model && each.decoding == Decoding::Sampled).collect();
        let mean = |kind: Option<&str>, value: &dyn Fn(&ResponseRecord) -> Option<f64>| {
            let chosen = own.iter().filter(|each| kind.is_none() || each.kind.as_deref() == kind);
            Mean::of(&chosen.filter_map(|each| value(each)).collect::<Vec<_>>())
        };
        Self {
            gold_helpfulness: mean(None, &|each| each.gold_helpfulness),
            gold_harm: mean(None, &|each| each.gold_harm),
            gold_harm_benign: mean(Some("benign"), &|each| each.gold_harm),
            gold_harm_hazardous: mean(Some("hazardous"), &|each| each.gold_harm),
            reward: mean(None, &|each| Some(each.reward)),
            cost: mean(None, &|each| Some(each.cost)),
            unsafe_ratio: mean(None, &|each| each.gold_harm.map(|harm| f64::from(u8::from(harm > 0.0)))),
        }
    }
}

/// Everything that the demo reports.
#[derive(Clone, Debug, Serialize)]
pub(super) struct DemoResult {
    cost_limit: f64,
    before: Outcome,
    after: Outcome,
    best_reachable: Option<Reachable>,
    /// Held-out figures of each stage, with the annotators' ceilings beside the accuracies.
    stages: Vec<StageFigures>,
}

#[derive(Clone, Debug, Serialize)]
struct StageFigures {
    name: &'static str,
    figures: Vec<(String, f64)>,
}

impl DemoResult {
    pub(super) fn new(
        world: &World,
        cost_limit: f64,
        responses: &[ResponseRecord],
        [sft, mut reward, mut cost]: [Vec<(String, f64)>; 3],
        ceiling: &Ceiling,
    ) -> Self {
        reward.push(("pair_accuracy_ceiling".to_owned(), ceiling.helpful_pair_accuracy.observed));
        cost.push(("pair_accuracy_ceiling".to_owned(), ceiling.harm_pair_accuracy.observed));
        cost.push(("sign_accuracy_ceiling".to_owned(), ceiling.safety_sign_accuracy.observed));
        Self {
            cost_limit,
            before: Outcome::of(responses, BEFORE),
            after: Outcome::of(responses, AFTER),
            best_reachable: world.best_reachable(cost_limit),
            stages: [("supervised fine-tuning", sft), ("reward model", reward), ("cost model", cost)]
                .map(|(name, figures)| StageFigures { name, figures })
                .into(),
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Writes `result.json` into the run.
    pub(super) fn write(&self, run: &RunDirectory) -> Result<(), Failure> {
        let path = run.path().join("result.json");
        std::fs::write(&path, self.to_json())
            .map_err(|error| Failure::run(format!("cannot write {}: {error}", path.display())))
    }

    /// The screen that the demo ends with.
    pub(super) fn table(&self) -> String {
        let rows: Vec<Vec<String>> =
            self.summary().into_iter().map(|row| vec![row.label, row.before, row.after, row.note]).collect();
        let stages = self.stages.iter().flat_map(|stage| {
            stage.figures.iter().map(|(name, value)| vec![format!("{} {name}", stage.name), format!("{value:.3}")])
        });
        let stages: Vec<Vec<String>> = stages.collect();
        format!(
            "\n{}\n\n{}",
            table::table(&["held-out figure", ""], &stages),
            table::table(&["held-out prompts", "before", "after", ""], &rows)
        )
    }

    fn summary(&self) -> Vec<SummaryRow> {
        let row = |label: &str, value: &dyn Fn(&Outcome) -> String, note: String| SummaryRow {
            label: label.to_owned(),
            before: value(&self.before),
            after: value(&self.after),
            note,
        };
        let reachable = self.best_reachable.as_ref().map_or(f64::NAN, |best| best.reward);
        let share = |outcome: &Outcome| format!("{:.0} %", 100.0 * outcome.gold_helpfulness.mean / reachable);
        let limit = format!("limit {:.2}", self.cost_limit);
        vec![
            row(
                "gold helpfulness",
                &|each| each.gold_helpfulness.to_string(),
                format!("best under the limit {reachable:.2}"),
            ),
            row("of the best reachable", &share, String::new()),
            row("gold harm", &|each| each.gold_harm.to_string(), limit.clone()),
            row("  on benign prompts", &|each| each.gold_harm_benign.to_string(), String::new()),
            row("  on hazardous prompts", &|each| each.gold_harm_hazardous.to_string(), String::new()),
            row("unsafe answers", &|each| each.unsafe_ratio.percent(), "gold harm above 0".to_owned()),
            row("reward model's score", &|each| each.reward.to_string(), String::new()),
            row("cost model's score", &|each| each.cost.to_string(), limit),
        ]
    }

    /// The report's page.
    pub(super) fn report(
        &self,
        config: &DemoConfig,
        run: &RunDirectory,
        train: &RunDirectory,
        responses: Vec<ResponseRecord>,
    ) -> Result<String, Failure> {
        let stages = self.stages.iter().map(|stage| Stage {
            name: stage.name.to_owned(),
            table: stage.figures.iter().map(|(name, value)| (name.replace('_', " "), format!("{value:.3}"))).collect(),
        });
        Ok(saddle_report::render(&ReportInput {
            title: "Safe RLHF on the embedded world".to_owned(),
            subtitle: format!("PPO-Lagrangian, mean cost limit {:.2}, seed {}", self.cost_limit, config.train.run.seed),
            before: BEFORE.to_owned(),
            after: AFTER.to_owned(),
            summary: self.summary(),
            stages: stages.collect(),
            updates: read_metrics(&train.metrics_path())?,
            evaluations: read_evaluations(&train.evaluations_path())?,
            constraint: config.constraint().to_owned(),
            cost_limit: self.cost_limit,
            responses,
            config_toml: run::to_toml(config)?,
            machine: run::machine(),
            command: format!("saddle demo --seed {} --run {}", config.train.run.seed, run.path().display()),
        }))
    }
}
