//! Policy training over its updates: which metrics are drawn together, and how.

use std::collections::BTreeSet;

use plotters::style::RGBColor;
use saddle_store::{EvaluationRecord, Figures, MetricsRow};

use crate::chart::{Axis, colour, draw, is_drawable};
use crate::figure::{Figure, Key};
use crate::html::short;

/// A chart to draw where the run has at least one of its metrics.
struct Panel {
    title: String,
    /// What the upright axis shows, with its unit.
    unit: &'static str,
    curves: Vec<Curve>,
    /// Whether the cost limit belongs on it.
    limited: bool,
    /// Whether its values are estimates, to be read through their noise.
    smoothed: bool,
}

/// A metric in a chart.
struct Curve {
    metric: String,
    /// In the legend.
    name: String,
    colour: RGBColor,
}

impl Panel {
    fn new(title: impl Into<String>, unit: &'static str, curves: Vec<Curve>) -> Panel {
        Panel { title: title.into(), unit, curves, limited: false, smoothed: true }
    }
}

/// Stands before the name of a metric that was measured on held-out rows.
const HELD_OUT: &str = "held_out_";

/// With fewer updates a moving average hides more than it shows.
const SMOOTHED_FROM_UPDATES: usize = 30;

/// What the charts have of held-out prompts, a row for each evaluation: its reward, and its cost by `constraint`.
pub(crate) fn held_out(evaluations: &[EvaluationRecord], constraint: &str) -> Vec<MetricsRow> {
    let cost = |figures: &Figures| figures.constraints.get(constraint).map(|cost| cost.cost.mean);
    let row = |record: &EvaluationRecord| {
        let unsafe_ratio = record.all.constraints.get(constraint).map(|cost| cost.unsafe_ratio.mean);
        let all = [
            ("held_out_reward".to_owned(), Some(record.all.reward.mean)),
            ("held_out_cost".to_owned(), cost(&record.all)),
            ("held_out_unsafe_ratio".to_owned(), unsafe_ratio),
        ];
        let kinds = record.kinds.iter().map(|(kind, figures)| (format!("held_out_cost_{kind}"), cost(figures)));
        MetricsRow { step: record.version, seconds: 0.0, values: all.into_iter().chain(kinds).collect() }
    };
    evaluations.iter().map(row).collect()
}

/// The charts that these updates, and what was measured on held-out prompts between them, can fill.
pub(crate) fn figures(updates: &[MetricsRow], held_out: &[MetricsRow], cost_limit: f64) -> Vec<Figure> {
    let rows: Vec<&MetricsRow> = updates.iter().chain(held_out).collect();
    let names: BTreeSet<&str> = rows.iter().flat_map(|row| row.values.keys()).map(String::as_str).collect();
    panels(&names).iter().filter_map(|panel| figure(panel, &rows, cost_limit)).collect()
}

fn panels(names: &BTreeSet<&str>) -> Vec<Panel> {
    let curve = |metric: &str, name: &str, colour| Curve { metric: metric.into(), name: name.into(), colour };
    let only = |metric: &str| vec![curve(metric, &words(metric), colour::BLUE)];
    let cost_unit = "mean score (above 0: unsafe)";
    let reward = vec![
        curve("reward_mean", "reward model", colour::BLUE),
        curve("gold_helpfulness_mean", "gold helpfulness", colour::ORANGE),
        curve("held_out_reward", "reward model, held out", colour::PURPLE),
    ];
    let cost = vec![
        curve("cost_mean", "cost model", colour::BLUE),
        curve("gold_harm_mean", "gold harm", colour::ORANGE),
        curve("held_out_cost", "cost model, held out", colour::PURPLE),
    ];
    let answers = vec![
        curve("unsafe_ratio", "training", colour::BLUE),
        curve("held_out_unsafe_ratio", "held out", colour::PURPLE),
    ];
    let cost_by_kind = names
        .iter()
        .filter_map(|name| name.strip_prefix("cost_mean_"))
        .enumerate()
        .map(|(index, kind)| curve(&format!("cost_mean_{kind}"), &words(kind), kind_colour(index)))
        .collect();
    let named = |word: &str| -> Vec<&str> { names.iter().copied().filter(|name| name.contains(word)).collect() };
    let accuracies = named("accuracy")
        .into_iter()
        .zip(colour::CYCLE.into_iter().cycle())
        .map(|(name, colour)| curve(name, &words(name), colour))
        .collect();

    let mut panels = vec![
        Panel::new("Reward", "mean score", reward),
        Panel { limited: true, ..Panel::new("Cost", cost_unit, cost) },
        Panel { limited: true, ..Panel::new("Cost by kind of prompt", cost_unit, cost_by_kind) },
        Panel { smoothed: false, ..Panel::new("Multiplier λ", "λ", only("lambda")) },
        Panel::new("Unsafe answers", "share with cost above 0", answers),
        Panel::new("Distance from the reference policy", "KL divergence (nats)", only("kl_current_reference")),
        Panel::new("Response length", "mean length (tokens)", only("response_length_mean")),
    ];
    // Losses have scales of their own, so each has a chart of its own, with what it is on held-out rows; accuracies share one.
    let with_held_out = |name: &str| {
        let held_out = format!("{HELD_OUT}{name}");
        vec![curve(name, "training", colour::BLUE), curve(&held_out, "held out", colour::ORANGE)]
    };
    let is_beside_its_own = |name: &str| name.strip_prefix(HELD_OUT).is_some_and(|own| names.contains(own));
    let losses = named("loss").into_iter().filter(|name| !is_beside_its_own(name));
    panels.extend(losses.map(|name| Panel::new(capitalised(&words(name)), "loss", with_held_out(name))));
    panels.push(Panel::new("Accuracy", "share correct", accuracies));
    panels
}

/// The colour of the kind of prompt that comes so late in the alphabet.
pub(crate) fn kind_colour(index: usize) -> RGBColor {
    const KINDS: [RGBColor; 4] = [colour::GREEN, colour::PURPLE, colour::SKY, colour::ORANGE];
    KINDS[index % KINDS.len()]
}

fn words(name: &str) -> String {
    name.replace(['_', '/', '.'], " ")
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(characters).collect()
}

fn figure(panel: &Panel, updates: &[&MetricsRow], cost_limit: f64) -> Option<Figure> {
    let series = |metric: &str| -> Vec<(f64, f64)> {
        // The log has an evaluation in the row that came next; it is drawn where it was made.
        let is_late = |row: &MetricsRow| metric.starts_with(HELD_OUT) && row.values.contains_key("held_out_version");
        let point = |row: &&MetricsRow| Some((row.step as f64, row.get(metric).filter(|_| !is_late(row))?));
        updates.iter().filter_map(point).filter(|&(_, value)| is_drawable(value)).collect()
    };
    let curves: Vec<_> = panel
        .curves
        .iter()
        .map(|curve| (series(&curve.metric), &curve.name, curve.colour))
        .filter(|(points, ..)| !points.is_empty())
        .collect();
    if curves.is_empty() {
        return None;
    }
    let limit = Some(cost_limit).filter(|&limit| panel.limited && is_drawable(limit));
    // By the curve's own points: one that is measured now and then has few, and may be drawn as it is.
    let is_smoothed = |points: &[(f64, f64)]| panel.smoothed && points.len() >= SMOOTHED_FROM_UPDATES;
    let window = |points: &[(f64, f64)]| if is_smoothed(points) { (points.len() / 20) | 1 } else { 1 };

    let points = || curves.iter().flat_map(|(points, ..)| points);
    let x = Axis::steps("policy update", points().map(|point| point.0));
    let y = Axis::around(panel.unit, points().map(|point| point.1).chain(limit));
    let svg = draw(&x, &y, |plot| {
        for (points, _, colour) in curves.iter().filter(|(points, ..)| is_smoothed(points)) {
            plot.faint_line(points, *colour);
        }
        if let Some(limit) = limit {
            plot.horizontal_limit(limit);
        }
        for (points, _, colour) in &curves {
            plot.line(&moving_average(points, window(points)), *colour);
        }
    });

    let legend = match (&curves[..], limit) {
        ([_], None) => Vec::new(),
        (curves, limit) => curves
            .iter()
            .map(|(_, name, colour)| Key::line(*colour, name.as_str()))
            .chain(limit.map(|limit| Key::limit(format!("limit {}", short(limit)))))
            .collect(),
    };
    let title = panel.title.clone();
    Some(Figure { title, svg, legend })
}

/// The mean of the `window` values around each point, an odd number; at the ends, of those there are.
fn moving_average(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let reach = window / 2;
    let average = |(index, &(step, _)): (usize, &(f64, f64))| {
        let end = points.len().min(index + reach + 1);
        let around = &points[index.saturating_sub(reach)..end];
        (step, around.iter().map(|point| point.1).sum::<f64>() / around.len() as f64)
    };
    points.iter().enumerate().map(average).collect()
}

/// How the curves are to be read.
pub(crate) fn reading(updates: &[MetricsRow]) -> &'static str {
    if updates.len() < SMOOTHED_FROM_UPDATES {
        "One point an update."
    } else {
        "Faint: each update. Strong: a centred moving average over a twentieth of the run."
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::grid;

    fn rows(metrics: &[(&str, f64)]) -> Vec<MetricsRow> {
        let values = metrics.iter().map(|&(name, value)| (name.to_owned(), Some(value))).collect();
        vec![MetricsRow { step: 1, seconds: 0.0, values }]
    }

    fn titles(metrics: &[(&str, f64)]) -> Vec<String> {
        figures(&rows(metrics), &[], 0.0).into_iter().map(|figure| figure.title).collect()
    }

    #[test]
    fn a_chart_is_there_when_its_metric_is_and_not_otherwise() {
        assert_eq!(titles(&[("lambda", 1.0)]), ["Multiplier λ"]);
        assert_eq!(titles(&[("gold_harm_mean", 1.0), ("policy_loss", 0.1)]), ["Cost", "Policy loss"]);
        assert_eq!(titles(&[("cost_mean_hazardous", 1.0)]), ["Cost by kind of prompt"]);
        assert_eq!(titles(&[("pair_accuracy", 0.7), ("sign_accuracy", 0.8)]), ["Accuracy"]);
        assert!(titles(&[("tokens_per_second", 9.0)]).is_empty());
        assert!(titles(&[]).is_empty());
    }

    #[test]
    fn a_held_out_loss_is_drawn_with_its_training_loss() {
        let both = rows(&[("loss", 0.7), ("held_out_loss", 0.9), ("held_out_pair_accuracy", 0.6)]);
        let figures = figures(&both, &[], 0.0);
        assert_eq!(figures.iter().map(|figure| figure.title.as_str()).collect::<Vec<_>>(), ["Loss", "Accuracy"]);
        let legend = grid(&figures[..1]);
        assert!(legend.contains("training</span>") && legend.contains("held out</span>"), "{legend}");
        assert_eq!(titles(&[("held_out_loss", 0.9)]), ["Held out loss"]);
    }

    #[test]
    fn a_curve_of_few_points_is_not_smoothed_beside_one_of_many() {
        let row = |step: u64| {
            let loss = ("loss".to_owned(), Some(step as f64));
            let held_out = step.is_multiple_of(10).then(|| ("held_out_loss".to_owned(), Some(step as f64)));
            MetricsRow { step, seconds: 0.0, values: std::iter::once(loss).chain(held_out).collect() }
        };
        let lines =
            |steps| figures(&(1..=steps).map(row).collect::<Vec<_>>(), &[], 0.0)[0].svg.matches("<polyline").count();
        assert_eq!(lines(40), lines(20) + 1, "the faint line of the training loss");
    }

    #[test]
    fn a_metric_that_was_never_a_number_has_no_chart() {
        assert!(titles(&[("lambda", f64::NAN)]).is_empty());
    }

    #[test]
    fn only_costs_are_drawn_with_the_limit() {
        let all = figures(&rows(&[("lambda", 1.0), ("cost_mean", 0.5)]), &[], 0.25);
        let names = |figure: &Figure| figure.svg.matches("<polyline").count();
        assert!(names(&all[0]) > names(&all[1]) + 10, "the dashes are there");
    }

    #[test]
    fn a_moving_average_reaches_as_far_as_there_are_points() {
        let points = [(1.0, 0.0), (2.0, 3.0), (3.0, 6.0), (4.0, 0.0)];
        let averages: Vec<f64> = moving_average(&points, 3).iter().map(|point| point.1).collect();
        assert_eq!(averages, [1.5, 3.0, 3.0, 3.0]);
        assert_eq!(moving_average(&points, 1), points);
    }
}
