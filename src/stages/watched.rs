//! Who watches a policy in training: the display and the metrics log; the limits and the policy's health, of which it tells;
//! and the evaluations.

use super::health::Health;
use super::prompts::Prompts;
use crate::evaluation::{HeldOut, News};
use crate::failure::Failure;
use crate::progress::Progress;
use saddle_core::{PolicyVersion, PromptOrdinal, ScoredRollout};
use saddle_data::PromptRow;
use saddle_lm::{Policy, ScoreRange, Tokenizer};
use saddle_store::{EvaluationRecord, Figures, RunDirectory};
use saddle_telemetry::{Telemetry, catalogue};
use saddle_training::config::{EvaluationSection, TrainConfig};
use saddle_training::{CostFigure, DualStep, LimitWatch, Named, Observer, UpdateMetrics, Verdict};
use serde_json::{Value, json};
use std::sync::Arc;

/// Looks at rollouts in training: given the text of each prompt, the rollouts and the tokenizer, returns metrics.
pub(crate) type Watch<'a> =
    &'a dyn Fn(&dyn Fn(PromptOrdinal) -> PromptRow, &[ScoredRollout], &Tokenizer) -> Vec<(String, f64)>;

pub(super) struct Watched<'a> {
    config: &'a TrainConfig,
    progress: Progress,
    watch: Option<Watch<'a>>,
    prompts: Arc<Prompts>,
    tokenizer: Arc<Tokenizer>,
    held_out: Option<Arc<HeldOut>>,
    telemetry: Arc<Telemetry>,
    limits: Vec<LimitWatch>,
    health: Health,
    /// The last evaluation, and the version of the best policy so far that kept every limit.
    last: Option<EvaluationRecord>,
    best: Option<u64>,
    /// Of the coming row.
    metrics: Vec<(String, f64)>,
}

impl<'a> Watched<'a> {
    pub(super) fn new(
        config: &'a TrainConfig,
        ranges: Vec<Option<ScoreRange>>,
        progress: Progress,
        watch: Option<Watch<'a>>,
        (prompts, tokenizer): (Arc<Prompts>, Arc<Tokenizer>),
        held_out: Option<Arc<HeldOut>>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        let limits = config.constraints.iter().map(|(name, section)| LimitWatch::new(name, section.dual.cost_limit));
        Self {
            limits: limits.collect(),
            health: Health::new(config, ranges),
            last: None,
            best: None,
            metrics: Vec::new(),
            config,
            progress,
            watch,
            prompts,
            tokenizer,
            held_out,
            telemetry,
        }
    }

    /// Examines the policy at the end of training. What the run came to, for each constraint.
    pub(super) fn judge(&mut self, version: PolicyVersion, policy: &Policy) -> Vec<Verdict> {
        // One that is still told of was of an earlier version.
        self.take_news();
        if let Some(held_out) = &self.held_out {
            self.last = None;
            held_out.examine(version, policy);
            self.take_news();
        }
        let figure = |name: &str| {
            let all = &self.last.as_ref()?.all;
            let cost = all.constraints.get(name)?;
            let (lower, upper) = cost.bounds;
            let (mean, unsafe_ratio) = (cost.cost.mean, cost.unsafe_ratio.mean);
            Some(CostFigure { responses: all.responses, mean, lower, upper, unsafe_ratio })
        };
        self.limits
            .iter()
            .zip(self.config.constraints.keys())
            .map(|(limit, name)| limit.verdict(figure(name)))
            .collect()
    }

    /// The version in `best/`, and what the last evaluation came to.
    pub(super) fn examined(&self) -> (Option<u64>, Option<&EvaluationRecord>) {
        (self.best, self.last.as_ref())
    }

    /// [`Progress::leave`].
    pub(super) fn leave(&mut self) {
        self.progress.leave();
    }

    /// [`Progress::finish`].
    pub(super) fn finish(self, run: &RunDirectory) -> Result<(), Failure> {
        self.progress.finish(run)
    }

    /// For `/v1/status`.
    pub(super) fn status(&self) -> Value {
        let limits = self.limits.iter().map(|limit| json!({ "over": limit.is_over(), "so_far": limit.verdict(None) }));
        json!({
            "limits": limits.collect::<Vec<_>>(),
            "evaluation": self.last,
            "best_version": self.best,
        })
    }

    fn take_news(&mut self) {
        let Some(held_out) = self.held_out.clone() else { return };
        for news in held_out.take_news() {
            match news {
                News::Trouble(text) => self.progress.note(&text),
                News::Evaluated { record, best } => {
                    self.best = if best { Some(record.version) } else { self.best };
                    self.progress.note(&described(&record, best));
                    self.metrics = held_out_metrics(&record);
                    self.publish(&record);
                    self.last = Some(record);
                }
            }
        }
    }

    /// For Prometheus.
    fn publish(&self, record: &EvaluationRecord) {
        catalogue::HELD_OUT_VERSION.of(&self.telemetry, []).set(record.version as f64);
        catalogue::HELD_OUT_REWARD.of(&self.telemetry, []).set(record.all.reward.mean);
        let kinds = record.kinds.iter().map(|(kind, figures)| (kind.as_str(), figures));
        for (kind, figures) in kinds.chain([("all", &record.all)]) {
            for (name, cost) in &figures.constraints {
                catalogue::HELD_OUT_COST.of(&self.telemetry, [name, kind]).set(cost.cost.mean);
                catalogue::HELD_OUT_UNSAFE.of(&self.telemetry, [name, kind]).set(cost.unsafe_ratio.mean);
            }
        }
    }
}

/// An evaluation in a line.
fn described(record: &EvaluationRecord, best: bool) -> String {
    let costs = record.all.constraints.iter().map(|(name, cost)| {
        let (mean, error) = (cost.cost.mean, cost.cost.standard_error);
        format!(
            "{name} {mean:.2} ± {error:.2} (limit {:.2}), {:.1} % unsafe",
            cost.limit,
            100.0 * cost.unsafe_ratio.mean
        )
    });
    let costs = costs.collect::<Vec<_>>().join("; ");
    let kept = if best { "; the best so far, kept in best/" } else { "" };
    let (version, reward) = (record.version, record.all.reward.mean);
    format!("held-out prompts after update {version}: reward {reward:.2}; {costs}{kept}")
}

/// An evaluation among the metrics of the row that comes next.
fn held_out_metrics(record: &EvaluationRecord) -> Vec<(String, f64)> {
    let names = Named { only: record.all.constraints.len() == 1 };
    let mut metrics = vec![
        ("held_out_version".to_owned(), record.version as f64),
        ("held_out_reward".to_owned(), record.all.reward.mean),
        ("held_out_reward_stderr".to_owned(), record.all.reward.standard_error),
    ];
    for (name, cost) in &record.all.constraints {
        let named = |metric: &str| names.constraint(metric, name);
        metrics.push((named("held_out_cost"), cost.cost.mean));
        metrics.push((named("held_out_cost_stderr"), cost.cost.standard_error));
        metrics.push((named("held_out_unsafe_ratio"), cost.unsafe_ratio.mean));
    }
    let by_kind = |(kind, figures): (&String, &Figures)| -> Vec<(String, f64)> {
        let cost = |(name, cost): (&String, &saddle_store::ConstraintFigures)| {
            let named = |metric: &str| names.constraint_kind(metric, name, kind);
            [(named("held_out_cost"), cost.cost.mean), (named("held_out_unsafe_ratio"), cost.unsafe_ratio.mean)]
        };
        figures.constraints.iter().flat_map(cost).collect()
    };
    metrics.extend(record.kinds.iter().flat_map(by_kind));
    metrics
}

impl Observer for Watched<'_> {
    fn step(&mut self, step: u64, steps: u64, metrics: &[(String, f64)]) {
        self.take_news();
        let own = std::mem::take(&mut self.metrics);
        self.progress.step(step, steps, &[metrics, &own].concat());
    }

    fn rollouts(&mut self, rollouts: &[ScoredRollout]) -> Vec<(String, f64)> {
        let row = |ordinal| self.prompts.row(ordinal).clone();
        let mut metrics = self.watch.map_or_else(Vec::new, |watch| watch(&row, rollouts, &self.tokenizer));
        for (stream, ratio) in self.health.out_of_range(rollouts) {
            catalogue::SCORE_RANGE_EXCEEDED.of(&self.telemetry, [&stream]).set(ratio);
            metrics.push((format!("score_range_exceeded_ratio_{stream}"), ratio));
        }
        metrics
    }

    fn updated(&mut self, update: u64, steps: &[DualStep], metrics: &UpdateMetrics) {
        for told in self.health.observe(update, metrics) {
            self.progress.note(&told);
        }
        for (limit, step) in self.limits.iter_mut().zip(steps) {
            for told in limit.observe(update, step) {
                self.progress.note(&told);
            }
        }
    }

    fn published(&mut self, version: PolicyVersion, policy: &Policy) {
        let (every, updates) = (self.config.evaluation.every_updates, self.config.ppo.updates);
        if let Some(held_out) = self.held_out.as_ref().filter(|_| EvaluationSection::is_due(every, version, updates)) {
            held_out.examine(version, policy);
        }
    }

    fn waits(&mut self, text: &str) {
        self.progress.waits(text);
    }

    fn note(&mut self, message: &str) {
        self.progress.note(message);
    }

    fn is_told_to_leave(&mut self) -> bool {
        self.progress.is_told_to_leave()
    }
}
