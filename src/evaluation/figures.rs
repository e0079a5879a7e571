//! Means of scored answers, with their standard errors.

use super::Answer;
use saddle_algorithms::statistics::confidence_margin;
use saddle_report::SummaryRow;
use saddle_store::{ConstraintFigures, Figure, Figures, ResponseRecord};
use saddle_training::config::{ConstraintSection, TrainConfig};
use serde::Serialize;

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Mean {
    pub(crate) mean: f64,
    pub(crate) standard_error: f64,
}

impl Mean {
    pub(crate) fn of(values: &[f64]) -> Self {
        let count = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        Self { mean, standard_error: (variance / count).sqrt() }
    }

    /// A share of all, in percent.
    pub(crate) fn percent(self) -> String {
        format!("{:.1} %", 100.0 * self.mean)
    }
}

impl std::fmt::Display for Mean {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:.2} ± {:.2}", self.mean, self.standard_error)
    }
}

impl From<Mean> for Figure {
    fn from(Mean { mean, standard_error }: Mean) -> Self {
        Self { mean, standard_error }
    }
}

/// What some answers came to, by every constraint of `config`.
pub(crate) fn figures(config: &TrainConfig, answers: &[&Answer]) -> Figures {
    let mean = |value: &dyn Fn(&Answer) -> f64| -> Figure {
        Mean::of(&answers.iter().map(|answer| value(answer)).collect::<Vec<_>>()).into()
    };
    let constraint = |(index, (name, section)): (usize, (&String, &ConstraintSection))| {
        let cost = mean(&|answer| answer.costs[index]);
        let margin = confidence_margin(cost.standard_error, answers.len());
        let figures = ConstraintFigures {
            limit: section.dual.cost_limit,
            cost,
            bounds: (cost.mean - margin, cost.mean + margin),
            unsafe_ratio: mean(&|answer| f64::from(u8::from(is_unsafe(answer.costs[index])))),
        };
        (name.clone(), figures)
    };
    Figures {
        responses: answers.len(),
        reward: mean(&|answer| answer.record.reward),
        constraints: config.constraints.iter().enumerate().map(constraint).collect(),
    }
}

/// Not-a-number is never safe.
fn is_unsafe(cost: f64) -> bool {
    cost.is_nan() || cost > 0.0
}

/// What the models of a run say of the answers of one of two policies that are compared.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Comparison {
    /// How many answers there are.
    pub(crate) responses: usize,
    pub(crate) reward: Mean,
    pub(crate) cost: Mean,
    /// Share of the answers whose cost is above 0.
    pub(crate) unsafe_ratio: Mean,
}

impl Comparison {
    /// Of the answers that `model` gave.
    pub(crate) fn of(responses: &[ResponseRecord], model: &str) -> Self {
        let own: Vec<&ResponseRecord> = responses.iter().filter(|each| each.model == model).collect();
        let mean =
            |value: fn(&ResponseRecord) -> f64| Mean::of(&own.iter().map(|each| value(each)).collect::<Vec<_>>());
        Self {
            responses: own.len(),
            reward: mean(|each| each.reward),
            cost: mean(|each| each.cost),
            unsafe_ratio: mean(|each| f64::from(u8::from(is_unsafe(each.cost)))),
        }
    }

    /// Before and after, row by row.
    pub(crate) fn summary(before: &Self, after: &Self, cost_limit: f64) -> Vec<SummaryRow> {
        let row = |label: &str, value: fn(&Self) -> String, note: String| SummaryRow {
            label: label.to_owned(),
            before: value(before),
            after: value(after),
            note,
        };
        vec![
            row("reward", |each| each.reward.to_string(), String::new()),
            row("cost", |each| each.cost.to_string(), format!("limit {cost_limit:.2}")),
            row("unsafe answers", |each| each.unsafe_ratio.percent(), "cost above 0".to_owned()),
        ]
    }
}
