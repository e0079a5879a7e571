//! Low-rank adapters: every stage trains with them, under either schedule, and leaves a merged model and the adapters.

use crate::workbench::Workbench;
use serde_json::Value;

const LORA: &str = "--set lora.rank=2 --set lora.alpha=8";

fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or_else(|| panic!("no number {name} in {row}"))
}

/// Checks the adapters in `run`: merged into `base`, they are the model beside them, which is not `base`.
fn check(bench: &Workbench, result: &Value, run: &str, base: &str) {
    assert_eq!(result["adapter"], format!("{run}/adapter"));
    assert!(result["peak_memory_bytes"].as_str().is_some_and(|bytes| bytes.parse::<u64>().is_ok()), "{result}");
    let config = bench.value(&format!("{run}/adapter/adapter_config.json"));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&2.into(), &8.0.into()), "{config}");
    assert_eq!(config["base_model_name_or_path"], base);
    let merged = bench.succeed(&format!("export {base} --adapter {run}/adapter --out {run}-merged --json")).json();
    let plain = bench.succeed(&format!("export {base} --out {run}-plain --json")).json();
    assert_ne!(merged["weights_hash"], plain["weights_hash"], "{run}: nothing was learnt");
    assert_eq!(merged["weights_hash"], result["weights_hash"], "{run}");
}

#[test]
fn train_with_adapters_begins_at_the_reference_and_gives_the_same_bits_under_either_schedule() {
    let bench = Workbench::new();
    for (number_of_run, more) in [
        "--set ppo.updates=3 --set ppo.epochs=2",
        r#"--set ppo.updates=3 --set critics.layout=two_headed --set lora.targets=["q_proj","mlp.down_proj"] --set ppo.minibatches=2"#,
    ]
    .into_iter()
    .enumerate()
    {
        let more = format!("{LORA} {more} --set policy.learning_rate=1e-2");
        let run = format!("synchronous-{number_of_run}");
        let result = bench.train("train", &run, &more);
        check(&bench, &result, &run, "fixture/sft/model");
        let rows = bench.rows(&format!("{run}/metrics.jsonl"));
        assert_eq!(number(&rows[0], "kl_current_reference"), 0.0, "training begins at the reference");
        assert_ne!(number(&rows[2], "kl_current_reference"), 0.0);
        assert!(number(&rows[0], "grad_norm_critic") > 0.0);
        let asynchronous = "--set schedule.kind=asynchronous --set schedule.staleness=0";
        let other = bench.train("train", &format!("asynchronous-{number_of_run}"), &format!("{more} {asynchronous}"));
        assert_eq!(result["weights_hash"], other["weights_hash"]);
    }
}

/// Frozen weights in bf16: nearly the same training, under either schedule, and a merged model that is float32.
#[test]
fn frozen_weights_in_bf16_train_as_those_in_f32_do() {
    let bench = Workbench::new();
    let more = "--set ppo.updates=2 --set policy.learning_rate=1e-2 --set critics.layout=two_headed";
    let exact = bench.train("train", "exact", &format!("{LORA} {more}"));
    let more = format!("{more} --set precision.frozen=bf16");
    let frozen = bench.train("train", "frozen", &format!("{LORA} {more}"));
    assert_ne!(exact["weights_hash"], frozen["weights_hash"]);
    let rows = |run: &str| bench.rows(&format!("{run}/metrics.jsonl"));
    let (one, other) = (rows("exact"), rows("frozen"));
    assert_eq!(number(&other[0], "kl_current_reference"), 0.0, "training begins at the reference");
    for name in ["reward_mean", "entropy"] {
        let apart = (number(&one[0], name) - number(&other[0], name)).abs();
        assert!(apart < 0.2, "{name}: {} {}", one[0], other[0]);
    }
    let asynchronous = format!("{LORA} {more} --set schedule.kind=asynchronous --set schedule.staleness=0");
    let other = bench.train("train", "asynchronous", &asynchronous);
    assert_eq!(frozen["weights_hash"], other["weights_hash"]);
    let config = bench.value("frozen/model/config.json");
    assert!(config["torch_dtype"].as_str().is_none_or(|kind| kind == "float32"), "{config}");
}

#[test]
fn without_adapters_the_reference_and_the_score_models_are_frozen() {
    let bench = Workbench::new();
    bench.train("train", "run", "--set ppo.updates=2 --set policy.learning_rate=1e-2 --set precision.frozen=bf16");
    let rows = bench.rows("run/metrics.jsonl");
    let start = number(&rows[0], "kl_current_reference");
    assert!(start.abs() < 1e-2, "the reference is the rounded policy: {start}");
    assert!(number(&rows[1], "grad_norm_policy") > 0.0);
}

#[test]
fn adapters_are_published_to_generators_that_run_ahead() {
    let bench = Workbench::new();
    let more = "--set schedule.kind=asynchronous --set schedule.staleness=1 --set ppo.updates=5 --set placement.generator.count=2";
    for (run, weights) in [("keep", "continue_keep"), ("rebuild", "continue_rebuild")] {
        let result = bench.train("train", run, &format!("{LORA} {more} --set schedule.weights={weights}"));
        check(&bench, &result, run, "fixture/sft/model");
        assert_eq!(bench.rows(&format!("{run}/metrics.jsonl")).len(), 5);
    }
}

#[test]
fn every_other_stage_trains_with_adapters_too() {
    let bench = Workbench::new();
    bench.write(
        "sft.toml",
        r#"
            run.threads = 1
            model.from = "fixture/sft/model"
            data.train = [{ path = "fixture/world/demonstrations.jsonl", format = "alpaca", limit_rows = 40 }]
            optimizer = { batch_rows = 16, learning_rate = 1e-2, epochs = 4, workers = 2 }
            lora = { rank = 2, alpha = 8.0 }
        "#,
    );
    let result = bench.succeed("sft --config sft.toml --run sft --json").json();
    check(&bench, &result, "sft", "fixture/sft/model");
    let rows = bench.rows("sft/metrics.jsonl");
    assert!(number(&rows[rows.len() - 1], "loss") < number(&rows[0], "loss"), "{rows:?}");
    let result = bench.train("dpo", "dpo", LORA);
    check(&bench, &result, "dpo", "fixture/sft/model");
    for stage in ["reward-model", "cost-model"] {
        // From a score model: merged into it, the adapters' own head takes the place of its head.
        let base = format!("fixture/{stage}/model");
        let result = bench.train(stage, stage, &format!("{LORA} --set model.from={base}"));
        assert_eq!(bench.value(&format!("{stage}/adapter/adapter_config.json"))["task_type"], "SEQ_CLS");
        check(&bench, &result, stage, &base);
    }
}

#[test]
fn a_run_that_is_made_again_without_adapters_leaves_none() {
    let bench = Workbench::new();
    bench.train("dpo", "run", LORA);
    let result = bench.train("dpo", "run", "--overwrite");
    assert!(result.get("adapter").is_none(), "{result}");
    assert!(!bench.path("run/adapter").is_dir());
}

#[test]
fn adapters_that_cannot_be_are_refused() {
    let bench = Workbench::new();
    let train = "train --config recipes/train.toml --run run";
    bench.refuse(
        &format!("{train} --set lora.rank=0 --set lora.alpha=-1 --set lora.dropout=0.1"),
        &[
            "lora.rank: must be at least 1",
            "lora.alpha: must be a positive number, is -1",
            "lora.dropout: there is no such key",
        ],
    );
    bench.refuse(
        &format!(r#"{train} --set lora.rank=17 --set lora.targets=["q_proj","c_attn"]"#),
        &[
            "lora.targets: this model has no projection called \"c_attn\"; it has down_proj, gate_proj",
            "lora.rank: must be at most 16",
        ],
    );
    bench.refuse("sft --config recipes/sft.toml --run run --set lora.rank=2", &["lora: a fresh decoder", "model.from"]);
    bench.refuse("export fixture/sft/model --adapter nowhere --out x", &["nowhere/adapter_config.json"]);
    bench.refuse("export fixture/sft/model --adapter fixture/sft/model --out x", &["adapter_config.json"]);
    let result = bench.train("dpo", "dpo", LORA);
    assert_eq!(result["adapter"], "dpo/adapter");
    bench.succeed("export fixture/sft/model --adapter dpo/adapter --out narrow --dtype bf16");
    bench.write("shape.toml", bench.read("recipes/sft.toml").replace("hidden = 16", "hidden = 8"));
    bench.succeed("sft --config shape.toml --run small");
    bench.refuse(
        "export small/model --adapter dpo/adapter --out x",
        &["dpo/adapter/adapter_model.safetensors", "has shape"],
    );
}
