//! Whether limits hold: what is told while a run goes on, the verdict at its end, the best model that kept every limit, and
//! exit code 5.

use crate::workbench::Workbench;
use serde_json::Value;

/// λ stays at nothing: only the reward is trained for.
const WITHOUT_MULTIPLIER: &str =
    r#"--set constraints.cost.dual.controller={kind="fixed"} --set constraints.cost.dual.initial_multiplier=0"#;

const TRAIN: &str = "train --config recipes/train.toml --run run --set evaluation.held_out_ratio=0.5";

fn verdict(bench: &Workbench) -> Value {
    bench.value("run/verdict.json")[0].clone()
}

#[test]
fn a_limit_that_cannot_be_met_is_told_of_at_once_and_at_the_end_and_is_exit_code_5_where_it_is_required() {
    let bench = Workbench::new();
    let more = "--set constraints.cost.dual.cost_limit=-50 --set constraints.cost.dual.maximum_multiplier=1";
    let outcome = bench.saddle(&format!("{TRAIN} {more} --require-limit"));
    assert_eq!(outcome.code, 5, "{}", outcome.stderr);
    for text in [
        "LIMIT cost: cost",
        "is over its limit -50.00 (λ 1.00)",
        "λ is at its cap 1 and cannot answer; raise constraints.cost.dual.maximum_multiplier",
        "limit -50.00 on cost BROKEN: no estimate was ever within it",
    ] {
        assert!(outcome.stderr.contains(text), "no {text:?} in {}", outcome.stderr);
    }
    assert!(outcome.stdout.contains("BROKEN"), "the closing table says so: {}", outcome.stdout);
    assert_eq!((&verdict(&bench)["held"], bench.path("run/best").is_dir()), (&Value::from(false), false));
    assert_eq!(bench.rows("run/metrics.jsonl")[0]["limit_exceeded"], 1.0);
    assert!(bench.path("run/model/model.safetensors").is_file(), "the model is kept");
    for (command, code, reason) in [
        ("export run@best --out exported", 2, "has no best model"),
        ("export run --out exported --require-limit", 5, "its limit is -50.000"),
    ] {
        let refused = bench.saddle(command);
        assert!(refused.code == code && refused.stderr.contains(reason), "{command}: {}", refused.stderr);
    }
    bench.succeed("export run --out exported");

    let bench = Workbench::new();
    let outcome = bench.succeed(&format!("{TRAIN} {more} {WITHOUT_MULTIPLIER}"));
    assert!(outcome.stderr.contains("BROKEN"), "told without being required: {}", outcome.stderr);
}

#[test]
fn the_best_policy_that_kept_every_limit_is_kept_and_exported() {
    let bench = Workbench::new();
    let held_out = r#"--set evaluation.prompts=[{path="fixture/world/prompts.valid.jsonl",format="prompts"}]"#;
    let more = format!(
        "{held_out} --set constraints.cost.dual.cost_limit=50 --set ppo.updates=6 --set evaluation.every_updates=2"
    );
    let outcome = bench.succeed(&format!("{TRAIN} {more} --require-limit"));
    assert!(outcome.stdout.contains("limit 50.00 on cost held"), "{}", outcome.stdout);
    let evaluations = bench.rows("run/evaluations.jsonl");
    let versions: Vec<_> = evaluations.iter().map(|each| each["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, [2, 4, 6]);
    let reward = |each: &Value| each["all"]["reward"]["mean"].as_f64().unwrap();
    let best = evaluations.iter().max_by(|a, b| reward(a).total_cmp(&reward(b))).unwrap();
    assert_eq!(&bench.value("run/best/evaluation.json"), best);
    assert!(best["kinds"].as_object().unwrap().contains_key("hazardous"), "{best}");
    let samples = bench.rows("run/samples.jsonl");
    assert_eq!(samples.len(), 3 * 8);
    assert_eq!(samples[0]["prompt"], samples[8]["prompt"], "always the same prompts");
    let with = |name: &str| bench.rows("run/metrics.jsonl").iter().filter(|row| row[name].is_number()).count();
    assert_eq!((with("held_out_cost"), with("held_out_cost_hazardous")), (2, 2), "in the rows that follow");
    bench.succeed("export run@best --out exported --require-limit");
    bench.succeed("generate --model exported --input fixture/world/prompts.valid.jsonl --max-new-tokens 2");
    let refused = bench.saddle("export fixture/sft/model --out other --require-limit");
    assert!(refused.code == 2 && refused.stderr.contains("no evaluation"), "{}", refused.stderr);
    let refused = bench.saddle("export fixture@best --out other");
    assert!(refused.code == 2 && refused.stderr.contains("fixture"), "{}", refused.stderr);
}

#[test]
fn a_run_that_breaks_its_limit_late_is_told_so() {
    let bench = Workbench::new();
    // A reward model that likes what the cost model dislikes: without λ, cost can only rise.
    bench.copy_model("cost-model", "reward");
    let mut card = bench.value("reward/saddle.json");
    card["kind"] = "reward".into();
    card["sign_convention"] = "higher reward means more helpful".into();
    bench.write("reward/saddle.json", card.to_string());
    let more = format!(
        "{WITHOUT_MULTIPLIER} --set reward_model.from=reward --set policy.learning_rate=1e-2 --set shaping.kl_coefficient=0"
    );
    bench.succeed(&format!("{TRAIN} {more} --set ppo.updates=1 --set constraints.cost.dual.cost_limit=50"));
    let first = bench.rows("run/metrics.jsonl")[0].clone();
    let number = |name: &str| first[name].as_f64().unwrap();
    let limit = number("cost_estimate") + 0.5 * number("cost_estimate_stderr");
    let more = format!("{more} --set ppo.updates=60 --set constraints.cost.dual.cost_limit={limit}");
    let outcome = bench.saddle(&format!("{TRAIN} --overwrite {more} --require-limit"));
    assert_eq!(outcome.code, 5, "{}", outcome.stderr);
    let verdict = verdict(&bench);
    assert_eq!(verdict["settled_at"], 1, "it began within its limit: {verdict}");
    assert!(verdict["updates_over"].as_u64().unwrap() > 10, "{verdict}");
    assert!(outcome.stderr.contains("BROKEN"), "{}", outcome.stderr);
}

#[test]
fn a_run_beside_its_evaluations_tells_of_its_limits_too() {
    let bench = Workbench::new();
    let more = "--set schedule.kind=asynchronous --set ppo.updates=6 --set evaluation.every_updates=2 --set constraints.cost.dual.cost_limit=-50";
    let outcome = bench.saddle(&format!("{TRAIN} {more} --require-limit"));
    assert_eq!(outcome.code, 5, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("LIMIT cost: cost") && outcome.stderr.contains("BROKEN"), "{}", outcome.stderr);
    let versions: Vec<_> =
        bench.rows("run/evaluations.jsonl").iter().map(|each| each["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, [2, 4, 6], "every version that was due, in order, and the last");
}

#[test]
fn divergence_collapse_and_unknown_scores_are_told_of_with_the_remedy() {
    let bench = Workbench::new();
    bench.copy_model("reward-model", "reward");
    let mut card = bench.value("reward/saddle.json");
    card["score_range"] = serde_json::json!({ "low": 100.0, "high": 101.0 });
    bench.write("reward/saddle.json", card.to_string());
    let alarms = "--set alarms.reference_kl=1e-9 --set alarms.entropy_ratio=0.999999";
    let more = "--set policy.learning_rate=1e-2 --set ppo.updates=12 --set reward_model.from=reward";
    let outcome = bench.succeed(&format!("{TRAIN} {alarms} {more}"));
    for text in [
        "ALARM divergence from the reference is",
        "ALARM entropy is",
        "ALARM 100 % of the reward scores are outside 100.00..101.00",
        "shaping.reference_kl.target",
    ] {
        assert!(outcome.stderr.contains(text), "no {text:?} in {}", outcome.stderr);
    }
    assert_eq!(bench.rows("run/metrics.jsonl")[0]["score_range_exceeded_ratio_reward"], 1.0);
}
