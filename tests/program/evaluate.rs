//! `saddle evaluate`: a trained policy against the one that it began as, and the run's report.

use crate::workbench::Workbench;
use serde_json::Value;
use std::fs;

const HELD_OUT: &str = "fixture/world/prompts.valid.jsonl";

/// A bench with a finished run of policy training.
fn trained(more: &str) -> Workbench {
    let bench = Workbench::new();
    bench.train("train", "run", more);
    bench
}

fn mean(result: &Value, policy: &str, figure: &str) -> f64 {
    result[policy][figure]["mean"].as_f64().unwrap_or_else(|| panic!("no {policy}.{figure} in {result}"))
}

#[test]
fn both_policies_answer_and_their_means_are_those_of_the_answers_in_the_run() {
    let bench = trained("");
    let result = bench.succeed(&format!("evaluate run --prompts {HELD_OUT} --responses 12 --json")).json();
    let rows = bench.rows("run/responses.jsonl");
    assert_eq!(rows.len(), 24);
    for policy in ["before", "trained"] {
        let own: Vec<&Value> = rows.iter().filter(|row| row["model"] == policy).collect();
        assert_eq!((own.len(), &result[policy]["responses"]), (12, &Value::from(12)));
        for figure in ["reward", "cost"] {
            let expected = own.iter().map(|row| row[figure].as_f64().unwrap()).sum::<f64>() / 12.0;
            assert!((mean(&result, policy, figure) - expected).abs() < 1e-9, "{policy} {figure}: {result}");
        }
        let harmful = own.iter().filter(|row| row["cost"].as_f64().unwrap() > 0.0).count() as f64 / 12.0;
        assert_eq!(mean(&result, policy, "unsafe_ratio"), harmful);
    }
    let prompts = |policy: &str| {
        rows.iter().filter(|row| row["model"] == policy).map(|row| row["prompt"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(prompts("before"), prompts("trained"));
    let report = fs::read_to_string(bench.path("run/report.html")).unwrap();
    assert!(report.contains("Answers side by side") && report.contains("2 updates"), "the run's curves and answers");
}

#[test]
fn greedy_answers_are_those_of_generate() {
    let bench = trained("");
    let table = bench.succeed(&format!("evaluate run --prompts {HELD_OUT} --responses 4 --greedy")).stdout;
    assert!(table.contains("unsafe answers") && table.contains("report: run/report.html"), "{table}");
    let rows = bench.rows("run/responses.jsonl");
    let asked: Vec<&Value> = rows.iter().filter(|row| row["model"] == "trained").collect();
    let input: String = asked.iter().map(|row| format!("{{\"prompt\": {}}}\n", row["prompt"])).collect();
    let answered = bench.succeed_reading("generate --model run/model --greedy --max-new-tokens 6", &input).rows();
    let responses = |rows: Vec<&Value>| rows.into_iter().map(|row| row["response"].clone()).collect::<Vec<_>>();
    assert_eq!(responses(asked), responses(answered.iter().collect()));
}

#[test]
fn one_of_several_constraints_is_named() {
    let bench = trained(
        r#"--set constraints.other.from=fixture/cost-model/model --set constraints.other.dual={cost_limit=1,estimator={kind="window"}}"#,
    );
    let evaluate = format!("evaluate run --prompts {HELD_OUT} --responses 2");
    for more in ["", "--constraint third"] {
        let outcome = bench.saddle(&format!("{evaluate} {more}"));
        assert!(
            outcome.code == 2 && outcome.stderr.contains("--constraint: name one of cost, other"),
            "{}",
            outcome.stderr
        );
    }
    let result = bench.succeed(&format!("{evaluate} --constraint other --json")).json();
    assert_eq!(result["cost_limit"], 1.0);
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    let bench = Workbench::new();
    bench.write("long.jsonl", format!("{{\"prompt\": \"{}\"}}\n", "word ".repeat(400)));
    bench.refuse(&format!("evaluate nowhere --prompts {HELD_OUT}"), &["nowhere"]);
    bench.train("train", "done", "");
    bench.refuse("evaluate done --prompts nothing.jsonl", &["nothing.jsonl"]);
    bench.refuse("evaluate done --prompts long.jsonl", &["long.jsonl: no prompt has at most prompts.max_tokens"]);
    bench.refuse(&format!("evaluate done --prompts {HELD_OUT} --responses 0"), &["--responses"]);
}
