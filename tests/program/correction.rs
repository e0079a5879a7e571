//! Training on rollouts of earlier weights: `ppo.delay_updates`, `[correction]` and `[guards]` of `saddle train`.

use crate::workbench::Workbench;
use serde_json::Value;

/// Trains a policy with more arguments: its weights hash, and its metrics.
fn train(bench: &Workbench, run: &str, more: &str) -> (Value, Vec<Value>) {
    let result = bench.train("train", run, more);
    (result["weights_hash"].clone(), bench.rows(&format!("{run}/metrics.jsonl")))
}

fn column(metrics: &[Value], name: &str) -> Vec<f64> {
    metrics.iter().map(|row| row[name].as_f64().unwrap_or_else(|| panic!("no {name} in {row}"))).collect()
}

#[test]
fn without_staleness_the_correction_does_not_matter_to_the_bit() {
    let bench = Workbench::new();
    let common = "--set ppo.epochs=2 --set ppo.minibatches=2";
    let (plain, metrics) = train(&bench, "none", &format!("{common} --set correction.kind=none"));
    assert_eq!(column(&metrics, "staleness_versions_max"), [0.0, 0.0]);
    assert_eq!(column(&metrics, "importance_weight_max"), [1.0, 1.0]);
    for (run, more) in [
        ("default", ""),
        ("truncated", "--set correction.kind=truncated"),
        ("vtrace", r#"--set correction.targets={kind="lambda_vtrace"}"#),
    ] {
        assert_eq!(train(&bench, run, &format!("{common} {more}")).0, plain, "{run}");
    }
}

#[test]
fn stale_batches_are_trained_on_with_weights_and_costs_do_not_wait() {
    let bench = Workbench::new();
    let stale = r#"--set ppo.updates=5 --set ppo.delay_updates=2 --set policy.learning_rate=1e-2
                   --set constraints.cost.dual.estimator={kind="fresh",minimum_effective_samples=4}"#;
    let (corrected, metrics) = train(&bench, "corrected", stale);
    assert_eq!(column(&metrics, "staleness_versions_max"), [0.0, 1.0, 2.0, 2.0, 2.0]);
    let largest = column(&metrics, "importance_weight_max");
    assert_eq!(largest[0], 1.0);
    assert!(largest[1..].iter().all(|weight| *weight != 1.0), "{largest:?}");
    assert!(column(&metrics, "kl_behaviour_proximal")[1..].iter().all(|drift| *drift > 0.0));
    // The estimate is that of the newest batch, with a half of the weight on the one before.
    let (estimates, means) = (column(&metrics, "cost_estimate"), column(&metrics, "cost_mean"));
    for update in 2..5 {
        let expected = (means[update] + 0.5 * means[update - 1]) / 1.5;
        assert!((estimates[update] - expected).abs() < 1e-6, "{expected} {estimates:?}");
    }
    assert_ne!(train(&bench, "none", &format!("{stale} --set correction.kind=none")).0, corrected);
    assert_eq!(train(&bench, "again", stale).0, corrected, "staleness is no excuse for chance");
}

#[test]
fn responses_that_are_too_far_away_are_rejected_and_counted() {
    let bench = Workbench::new();
    let (_, metrics) = train(
        &bench,
        "run",
        "--set ppo.delay_updates=1 --set policy.learning_rate=1e-2 --set correction.rejection.k3_limit=0",
    );
    assert_eq!(column(&metrics, "rejected_ratio"), [0.0, 1.0]);
    assert_eq!(column(&metrics, "updates_skipped_rejected"), [0.0, 1.0]);
    assert_eq!(column(&metrics, "updates_skipped_drift"), [0.0, 0.0]);
}

#[test]
fn problems_of_correction_and_guards_are_reported_with_key_and_remedy() {
    Workbench::new().refuse(
        r#"train --config recipes/train.toml --run run --set ppo.delay_updates=2 --set correction.weight_cap=0.5
           --set correction.rejection.k3_limit=-1 --set guards.rejected_limit=2 --set correction.kind=none
           --set correction.targets={kind="lambda_vtrace",noise=-1} --set correction.kinds=1"#,
        &[
            "ppo.delay_updates: must be below updates = 2, is 2",
            "correction.weight_cap: must be 1 or more, is 0.5",
            "correction.rejection.k3_limit: must be 0 or more, is -1; rejection.enabled = false rejects nothing",
            "correction.targets.kind: lambda_vtrace corrects stale rollouts, which kind = \"none\" does not",
            "correction.targets.noise: must be 0 or more, is -1",
            "correction.kinds: there is no such key",
            "guards.rejected_limit: must be in 0..=1, is 2",
        ],
    );
}
