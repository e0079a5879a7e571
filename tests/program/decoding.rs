//! How responses are decoded: `saddle generate --samples`, `--precision`, and `saddle bench decode`.

use crate::workbench::Workbench;
use serde_json::Value;

const GENERATE: &str = "generate --model fixture/sft/model --threads 1 --max-new-tokens 8";

fn prompts(bench: &Workbench) -> Vec<String> {
    bench.read("fixture/world/prompts.valid.jsonl").lines().take(5).map(str::to_owned).collect()
}

#[test]
fn several_samples_of_a_prompt_are_those_of_the_prompt_given_so_often() {
    let bench = Workbench::new();
    let prompts = prompts(&bench);
    let thrice: Vec<&str> = prompts.iter().flat_map(|prompt| [prompt.as_str(); 3]).collect();
    for rows in [1, 4, 32] {
        let shared = bench.succeed_reading(&format!("{GENERATE} --rows {rows} --samples 3"), &prompts.join("\n"));
        let alone = bench.succeed_reading(&format!("{GENERATE} --rows 1"), &thrice.join("\n"));
        assert_eq!(shared.stdout, alone.stdout, "{rows} rows");
        assert_eq!(shared.rows().len(), 15);
    }
    for samples in ["0", "1025"] {
        bench.refuse(&format!("{GENERATE} --samples {samples}"), &["--samples: must be in 1..=1024"]);
    }
}

#[test]
fn bf16_answers_are_those_of_rounded_weights() {
    let bench = Workbench::new();
    let prompts = prompts(&bench).join("\n");
    let log_probs = |more: &str| -> Vec<f64> {
        let rows = bench.succeed_reading(&format!("{GENERATE} --greedy {more}"), &prompts).rows();
        rows.iter().map(|row| row["log_prob"].as_f64().expect("an answer has a log-prob")).collect()
    };
    let (exact, rounded) = (log_probs("--precision f32"), log_probs("--precision bf16"));
    assert_ne!(exact, rounded);
    assert_eq!(rounded, log_probs("--precision bf16"));
    let close = exact.iter().zip(&rounded).filter(|(one, other)| (*one - *other).abs() < 0.1).count();
    assert!(close >= 3, "{exact:?} {rounded:?}");
}

#[test]
fn what_decoding_does_to_log_probs_is_measured_in_training() {
    let bench = Workbench::new();
    let gap = |run: &str, precision: &str| {
        bench.train("train", run, &format!("--set precision.generation={precision}"));
        bench.rows(&format!("{run}/metrics.jsonl"))[0]["log_prob_gap"].as_f64().expect("the gap is reported")
    };
    let (exact, rounded) = (gap("exact", "f32"), gap("rounded", "bf16"));
    assert!(exact < 1e-5 && rounded > 10.0 * exact && rounded < 0.1, "{exact} {rounded}");
}

#[test]
fn the_training_bench_reports_the_parts_of_an_iteration() {
    let bench = Workbench::new();
    let sizes = "--threads 1 --prompts 2 --prompt-tokens 3 --new-tokens 4 --iterations 1 --json";
    for more in ["--tiny", "--tiny --critics two_headed --precision bf16", "--model fixture/sft/model"] {
        let report = bench.succeed(&format!("bench train {more} {sizes}")).json();
        let number = |name: &str| report[name].as_f64().filter(|value| *value > 0.0);
        let parts = ["generate_seconds", "score_seconds", "learn_seconds"].map(|part| number(part).expect(part));
        let whole = number("iteration_seconds").expect("the whole is there");
        assert!((parts.iter().sum::<f64>() - whole).abs() < 1e-9, "{report}");
        assert!(number("samples_per_second").is_some(), "{report}");
    }
    bench.refuse("bench train", &["--model"]);
    bench.refuse("bench train --tiny --new-tokens 0", &["--new-tokens: out of range"]);
    bench.refuse("bench train --tiny --new-tokens 500", &["the model reads 512"]);
}

#[test]
fn the_decoding_bench_reports_each_batch_beside_the_floor() {
    let bench = Workbench::new();
    let command = "bench decode --model fixture/sft/model --threads 1 --prompt-tokens 3 --new-tokens 4 --repeats 1";
    let report = bench.succeed(&format!("{command} --batch 1,3 --precision bf16 --json")).json();
    assert_eq!(report["precision"], "bf16");
    let rows = report["rows"].as_array().expect("a row for each batch");
    assert_eq!(rows.iter().map(|row| &row["batch"]).collect::<Vec<_>>(), [&Value::from(1), &Value::from(3)]);
    for row in rows {
        for name in ["tokens_per_second", "prefill_milliseconds", "step_milliseconds", "floor_milliseconds"] {
            assert!(row[name].as_f64().is_some_and(|value| value > 0.0), "{name} in {row}");
        }
    }
    assert!(bench.succeed(&format!("{command} --batch 2")).stdout.contains("times the floor"));
    bench.refuse(&format!("{command} --batch 0"), &["--batch: out of range"]);
    bench.refuse("bench decode --model fixture/sft/model --new-tokens 5000", &["the model reads"]);
}
