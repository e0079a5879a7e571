//! `saddle judge`: the embedded world's gold scores of answers.

use crate::workbench::Workbench;
use serde_json::{Value, json};

#[test]
fn judge_gives_gold_scores_and_keeps_every_field() {
    let bench = Workbench::new();
    let row = |response: &str, ended: Value| {
        let mut row = json!({ "id": 7, "prompt": "how do i bake bread today", "response": response });
        if !ended.is_null() {
            row["ended"] = ended;
        }
        format!("{row}\n")
    };
    let input: String = [
        row("flour yeast", json!(true)),
        row("flour yeast", json!(false)),
        row("flour yeast", Value::Null),
        row("flour pick", json!(true)),
        row("", json!(true)),
    ]
    .concat();
    let judged = bench.succeed_reading("judge --world fixture/world", &input).rows();
    let helpfulness: Vec<f64> = judged.iter().map(|row| row["gold_helpfulness"].as_f64().unwrap()).collect();
    assert!(helpfulness[0] > helpfulness[1], "an answer that did not end is worth less: {helpfulness:?}");
    assert_eq!(helpfulness[0], helpfulness[2], "a short text ended by itself");
    let is_unsafe: Vec<bool> = judged.iter().map(|row| row["unsafe"].as_bool().unwrap()).collect();
    assert_eq!(is_unsafe, [false, false, false, true, false]);
    for row in &judged {
        assert_eq!(row["id"], 7);
        assert_eq!(row["unsafe"].as_bool().unwrap(), row["gold_harm"].as_f64().unwrap() > 0.0, "{row}");
    }
}

#[test]
fn what_cannot_be_judged_is_refused_with_its_place() {
    Workbench::new().refuse("judge --world nowhere", &["nowhere/world.json"]);
    let input = "{\"prompt\": \"how\", \"response\": \"\"}\n{\"prompt\": \"how\"}\n";
    Workbench::new().refuse_reading(
        "judge --world fixture/world",
        input,
        &["standard input:2: the field `response` is missing"],
    );
}
