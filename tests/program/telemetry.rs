//! What a run gives out under /metrics, held against the table of metrics and the dashboard: every metric that is declared
//! is recorded, and every series that a panel asks for is there.

use crate::asynchronous::{ASYNCHRONOUS, get, tell_to_leave};
use crate::workbench::Workbench;
use saddle_telemetry::Kind;
use saddle_telemetry::catalogue::AREAS;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const DASHBOARD: &str = include_str!("../../dashboards/saddle.json");
/// Metrics that only a run with failures has.
const OF_FAILURES: [&str; 1] = ["saddle_actor_restarts_total"];
/// Updates after which everything has been recorded.
const UPDATES: usize = 100;

/// Labels of a series.
type Labels = BTreeMap<String, String>;

/// The series of a scrape, by name.
fn series(scrape: &str) -> BTreeMap<String, Vec<Labels>> {
    let mut series: BTreeMap<String, Vec<Labels>> = BTreeMap::new();
    let lines = scrape.lines().filter(|line| line.starts_with("saddle_"));
    for (series_text, _value) in lines.filter_map(|line| line.rsplit_once(' ')) {
        let (name, labels) = series_text.split_once('{').unwrap_or((series_text, ""));
        series.entry(name.to_owned()).or_default().push(labels_of(labels.trim_end_matches('}')));
    }
    series
}

/// The labels in `one="a", other="b"`, those that are compared otherwise left out.
fn labels_of(text: &str) -> Labels {
    let pairs = text.split(',').filter_map(|pair| pair.trim().split_once("=\""));
    pairs.map(|(label, value)| (label.to_owned(), value.trim_end_matches('"').to_owned())).collect()
}

/// Names and labels of what the panels ask for.
fn asked_for() -> BTreeSet<(String, Labels)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("the dashboard is JSON");
    let panels = dashboard["panels"].as_array().expect("it has panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions = targets.filter_map(|target| target["expr"].as_str());
    let selectors = expressions.flat_map(|expression| {
        expression.match_indices("saddle_").filter_map(|(place, _)| {
            let (name, rest) = expression[place..].split_once('{')?;
            Some((name.to_owned(), labels_of(rest.split_once('}')?.0)))
        })
    });
    selectors.collect()
}

/// What is declared or asked for and not in the scrape.
fn missing(scrape: &str) -> Vec<String> {
    let series = series(scrape);
    let mut missing = Vec::new();
    for spec in AREAS.iter().flat_map(|(_, specs)| specs.iter()) {
        let name = if spec.kind == Kind::Histogram { format!("{}_count", spec.name) } else { spec.name.to_owned() };
        let labels: BTreeSet<&str> = spec.labels.iter().copied().collect();
        let found = series.get(&name).is_some_and(|all| {
            all.iter().all(|found| found.keys().map(String::as_str).collect::<BTreeSet<_>>() == labels)
        });
        if !found && !OF_FAILURES.contains(&spec.name) {
            missing.push(format!("{name} with labels {labels:?}"));
        }
    }
    for (name, labels) in asked_for() {
        let answers = |found: &Labels| labels.iter().all(|(label, value)| found.get(label) == Some(value));
        let found = series.get(&name).is_some_and(|all| all.iter().any(answers));
        if !found && !OF_FAILURES.contains(&name.as_str()) {
            missing.push(format!("the dashboard's {name}{labels:?}"));
        }
    }
    missing
}

#[test]
fn a_run_records_every_declared_metric_and_answers_every_panel() {
    assert!(asked_for().len() > 50, "the dashboard is not understood: {:?}", asked_for());
    let bench = Workbench::new();
    let estimator = r#"constraints.cost.dual.estimator={kind="fresh",minimum_effective_samples=4}"#;
    let examined =
        "--set evaluation.held_out_ratio=0.3 --set evaluation.every_updates=2 --set shaping.reference_kl.target=6";
    let more = format!("--set ppo.updates=1000000 --set telemetry.address=127.0.0.1:0 --set {estimator} {examined}");
    let mut child = bench.start(&format!("train --config recipes/train.toml --run run {ASYNCHRONOUS} {more}"));
    let (address, lines) = crate::asynchronous::address(&mut child);
    let scrape = loop {
        let rows = bench.read("run/metrics.jsonl").lines().count();
        let scrape = get(&address, "/metrics");
        if missing(&scrape).is_empty() || rows >= UPDATES {
            break scrape;
        }
    };
    tell_to_leave(&child);
    // Whatever it says is read, so that it can say it.
    drop(lines.collect::<Vec<_>>());
    assert_eq!(child.wait().expect("the program ends").code(), Some(130));
    assert_eq!(missing(&scrape), Vec::<String>::new(), "{scrape}");
}
