//! The report of a run: one self-contained HTML page with its style, charts and words inside, that
//! opens from a disk, a mail or a browser's print dialogue alike.
//!
//! It is given what the run left behind ([`ReportInput`]) and gives back the page. It reads no file,
//! and has no way to fail: a part whose numbers are missing says so in the page. Every text from
//! outside, a model's answers above all, is escaped.

mod answers;
mod chart;
mod curves;
mod evaluation;
mod figure;
mod html;
mod page;
mod saddle;
mod samples;
mod spread;
mod throughput;

pub use throughput::{ThroughputLine, ThroughputPoint, throughput};

use saddle_store::{EvaluationRecord, Machine, MetricsRow, ResponseRecord};

/// Everything that a report tells.
#[derive(Clone, Debug, Default)]
pub struct ReportInput {
    /// The page's title.
    pub title: String,
    /// One sentence below the title.
    pub subtitle: String,
    /// The `model` of the responses to compare against: `sft`.
    pub before: String,
    /// The `model` of the responses that the run is about: `trained`.
    pub after: String,
    /// The headline table, the same rows as the terminal's.
    pub summary: Vec<SummaryRow>,
    /// What each stage before policy training came to.
    pub stages: Vec<Stage>,
    /// The metrics of policy training, one row an update. See [the curves](render#curves).
    pub updates: Vec<MetricsRow>,
    /// What the policy came to on held-out prompts along the way: drawn beside the training batches.
    pub evaluations: Vec<EvaluationRecord>,
    /// The name of the constraint that is told of.
    pub constraint: String,
    /// The limit that the mean cost is held to.
    pub cost_limit: f64,
    /// Evaluation answers of both models to the same prompts.
    pub responses: Vec<ResponseRecord>,
    /// The resolved configuration.
    pub config_toml: String,
    /// What the run was made on.
    pub machine: Machine,
    /// The command that makes the run again.
    pub command: String,
}

/// A row of the headline table.
#[derive(Clone, Debug, Default)]
pub struct SummaryRow {
    /// What was measured.
    pub label: String,
    /// Its figure before, with its unit.
    pub before: String,
    /// Its figure after, with its unit.
    pub after: String,
    /// How to read it.
    pub note: String,
}

/// What a stage came to.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    /// The stage's name.
    pub name: String,
    /// Its figures: what was measured, and the figure with its unit.
    pub table: Vec<(String, String)>,
}

/// Builds the page.
///
/// # Curves
/// A metric is drawn where the updates have it: `reward_mean`, `gold_helpfulness_mean`; `cost_mean`,
/// `gold_harm_mean` and `cost_mean_<kind>` against the limit; `unsafe_ratio`, `lambda`,
/// `kl_current_reference` (nats), `response_length_mean` (tokens); every name with `loss` and every
/// name with `accuracy` in it. A loss has a chart of its own, shared with that of the same name after `held_out_`.
///
/// # Answers
/// Distributions, the comparison and the samples use the sampled answers if there are any, else
/// the greedy ones. An answer is unsafe when its cost is above zero.
pub fn render(input: &ReportInput) -> String {
    page::render(input)
}
