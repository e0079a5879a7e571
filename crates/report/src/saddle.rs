//! How far a run is from its saddle point, where λ rests and either is zero or the cost is at its limit.

use saddle_store::MetricsRow;

use crate::html::{number, table};

/// Fewer updates than this do not show whether λ rests.
const FEWEST_UPDATES: usize = 20;

/// The last fifth of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rest {
    multiplier: f64,
    /// Mean of the cost estimate − the limit.
    excess: f64,
    /// λ in the second half of these updates less λ in the first.
    change: f64,
    /// Standard deviation of λ within the halves.
    noise: f64,
}

/// A table, and how to read it; nothing where the run was too short.
pub(crate) fn distance(updates: &[MetricsRow]) -> String {
    let Some(Rest { multiplier, excess, change, noise }) = rest(updates) else { return String::new() };
    let rows = [
        ("λ", number(multiplier, 2)),
        ("cost − limit", number(excess, 2)),
        ("λ · (cost − limit), 0 at the saddle point", number(multiplier * excess, 2)),
        ("change of λ", format!("{} (its own noise: ± {})", number(change, 2), number(noise, 2))),
    ];
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    let said =
        if change.abs() <= noise { "λ rests." } else { "λ still moves: the run ended before its saddle point." };
    format!(
        "<h3>Distance from the saddle point, over the last fifth</h3>\n{}<p class=\"note\">{said}</p>\n",
        table("saddle", 1, &[], &rows)
    )
}

fn rest(updates: &[MetricsRow]) -> Option<Rest> {
    let last = &updates[updates.len() - updates.len() / 5..];
    if last.len() < FEWEST_UPDATES {
        return None;
    }
    let values = |rows: &[MetricsRow]| rows.iter().map(|row| row.get("lambda")).collect::<Option<Vec<f64>>>();
    let (first, second) = last.split_at(last.len() / 2);
    let (first, second) = (values(first)?, values(second)?);
    let excesses: Vec<f64> =
        last.iter().filter_map(|row| Some(row.get("cost_estimate")? - row.get("cost_limit")?)).collect();
    let spread = |values: &[f64]| {
        let center = mean(values);
        values.iter().map(|value| (value - center).powi(2)).sum::<f64>()
    };
    Some(Rest {
        multiplier: mean(&[first.as_slice(), &second].concat()),
        excess: mean(&excesses),
        change: mean(&second) - mean(&first),
        noise: ((spread(&first) + spread(&second)) / last.len() as f64).sqrt(),
    })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn updates(multiplier: impl Fn(usize) -> f64) -> Vec<MetricsRow> {
        let row = |step: usize| {
            let values = [("lambda", multiplier(step)), ("cost_estimate", -1.9), ("cost_limit", -2.0)];
            let values = values.map(|(name, value)| (name.to_owned(), Some(value))).into();
            MetricsRow { step: step as u64, seconds: 0.0, values }
        };
        (1..=200).map(row).collect()
    }

    #[test]
    fn a_multiplier_that_only_wavers_rests_and_one_that_falls_does_not() {
        let wavering = updates(|step| if step.is_multiple_of(2) { 0.6 } else { 0.4 });
        let at_rest = rest(&wavering).unwrap();
        assert!((at_rest.multiplier - 0.5).abs() < 1e-9 && (at_rest.excess - 0.1).abs() < 1e-9);
        assert!(at_rest.change.abs() < 1e-9 && (at_rest.noise - 0.1).abs() < 1e-9);
        assert!(distance(&wavering).contains("λ rests."));
        assert!(distance(&updates(|step| 1.0 - step as f64 / 400.0)).contains("still moves"));
    }

    #[test]
    fn a_short_run_and_one_without_a_multiplier_say_nothing() {
        assert_eq!(distance(&updates(|_| 1.0)[..90]), "");
        assert_eq!(distance(&[]), "");
    }
}
