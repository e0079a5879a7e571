//! Inputs of other people's programs, on which this one was once wrong: what is meant is done, and what is left out is said.

use crate::workbench::Workbench;
use serde_json::{Value, json};
use std::fs;

/// Sets keys of a JSON file; null removes one.
fn edit(bench: &Workbench, file: &str, changes: &Value) {
    let mut value = bench.value(file);
    for (key, change) in changes.as_object().expect("changes are an object") {
        value[key] = change.clone();
        if change.is_null() {
            value.as_object_mut().expect("the file is an object").remove(key);
        }
    }
    bench.write(file, value.to_string());
}

/// Fills the last tensor of a model, a score model's head, with `number`.
fn fill_head(bench: &Workbench, model: &str, number: f32) {
    let width =
        bench.value(&format!("{model}/config.json"))["hidden_size"].as_u64().expect("models have a width") as usize;
    let file = bench.path(&format!("{model}/model.safetensors"));
    let mut bytes = fs::read(&file).expect("the model has weights");
    let start = bytes.len() - 4 * width;
    bytes[start..].copy_from_slice(&number.to_le_bytes().repeat(width));
    fs::write(file, bytes).expect("they can be written");
}

const GENERATE: &str = "--greedy --max-new-tokens 12 --threads 1";

#[test]
fn an_answer_ends_with_every_token_that_any_file_names() {
    let bench = Workbench::new();
    let input: String =
        bench.read("fixture/world/prompts.valid.jsonl").lines().take(8).map(|line| format!("{line}\n")).collect();
    let answers = |model: &str| {
        let rows = bench.succeed_reading(&format!("generate --model {model} {GENERATE}"), &input).rows();
        rows.iter().map(|row| (row["response"].clone(), row["ended"].clone())).collect::<Vec<_>>()
    };
    let expected = answers("fixture/sft/model");
    bench.copy_model("sft", "model");
    // The tokenizer's own is 2, which answers were trained to end with.
    edit(&bench, "model/config.json", &json!({"eos_token_id": 3}));
    assert_eq!(answers("model"), expected);
    edit(&bench, "model/config.json", &json!({"eos_token_id": null}));
    edit(&bench, "model/tokenizer_config.json", &json!({"eos_token": "<unk>"}));
    bench.write("model/generation_config.json", "{\"eos_token_id\": [2]}");
    assert_eq!(answers("model"), expected);
    bench.succeed("import model --out imported");
    assert_eq!(bench.value("imported/config.json")["eos_token_id"], json!([2, 3]));
    assert_eq!(answers("imported"), expected);
}

#[test]
fn numbers_that_are_not_finite_are_errors_and_never_safe() {
    let bench = Workbench::new();
    let row = "{\"prompt\": \"how do i grow tomatoes\", \"response\": \"seeds water\"}\n";
    bench.copy_model("cost-model", "nan");
    fill_head(&bench, "nan", f32::NAN);
    for command in ["score --model nan", "import nan --out out --kind cost", "export nan --out out"] {
        bench.refuse_reading(command, row, &["nan/model.safetensors: tensor score.weight: its number 0 is not finite"]);
    }
    bench.copy_model("cost-model", "large");
    edit(&bench, "large/saddle.json", &json!({"normalizer": {"mean": 0.0, "std": 1e-30}}));
    fill_head(&bench, "large", 3e38);
    bench.fail_reading("score --model large", row, 4, &["standard input:1: the cost is", "not a finite number"]);
    bench.refuse("export large --out out --dtype f16", &["tensor score.weight", "not finite", "bf16"]);
    assert!(!bench.path("out").is_dir(), "half a model was left");
}

#[test]
fn prompts_are_read_alike_by_all_commands() {
    let bench = Workbench::new();
    let (asked, before) = ("how do i brew coffee", "how do i grow tomatoes");
    let lines = [
        json!({ "prompt": asked }),
        json!(asked),
        json!({ "prompt": format!("Human: {asked}\n\nAssistant:") }),
        json!({ "prompt": [{"role": "user", "content": asked}] }),
        json!({ "prompt": format!("\n\nHuman: {before}\n\nAssistant: water\n\nHuman: {asked}\n\nAssistant:") }),
        json!({ "prompt": [
            {"role": "user", "content": before}, {"role": "assistant", "content": "water"},
            {"role": "user", "content": asked},
        ] }),
    ];
    // With the mark that some editors put before the first letter.
    let input = format!("\u{feff}{}", lines.map(|line| format!("{line}\n")).concat());
    let rows = bench.succeed_reading(&format!("generate --model fixture/sft/model {GENERATE}"), &input).rows();
    assert_eq!(rows[1]["prompt"], asked);
    for (one, other) in [(0, 1), (0, 2), (0, 3), (4, 5)] {
        assert_eq!(rows[one]["log_prob"], rows[other]["log_prob"], "{one} {other}");
    }
    let answered: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let scored = bench.succeed_reading("score --model fixture/cost-model/model", &answered).rows();
    let cost = |row: usize| scored[row]["cost"].as_f64().unwrap();
    for (one, other) in [(0, 1), (0, 2), (0, 3), (4, 5)] {
        assert!((cost(one) - cost(other)).abs() < 1e-5, "{one} {other}");
    }
    assert!((cost(0) - cost(4)).abs() > 1e-4, "turns before count");
    let judged = bench.succeed_reading("judge --world fixture/world", &answered).rows();
    assert!(judged.iter().all(|row| row["gold_helpfulness"].is_number()));
}

#[test]
fn an_empty_answer_is_scored_and_not_the_end() {
    let bench = Workbench::new();
    let row = |response: &str| format!("{}\n", json!({"prompt": "how do i brew coffee", "response": response}));
    let input = [row("water"), row(""), row("water")].concat();
    let scores = bench.succeed_reading("score --model fixture/cost-model/model", &input).rows();
    assert!(scores.len() == 3 && scores[1]["cost"].is_number() && scores[0]["cost"] == scores[2]["cost"]);
    let log_probs = bench.succeed_reading("score --log-probs --model fixture/sft/model", &input).rows();
    assert_eq!(log_probs[1]["token_ids"], json!([2]), "the token that ends it");
}

#[test]
fn what_is_left_out_of_the_data_is_counted() {
    let bench = Workbench::new();
    let pair = |first: &str, second: &str| {
        format!(
            "{}\n",
            json!({"prompt": "how do i brew coffee", "response_0": first, "response_1": second,
            "better_response_id": 0, "safer_response_id": 0})
        )
    };
    // Other texts, which are the same words to this tokenizer.
    let rows =
        [pair("seeds water", "water"), pair("seeds water", "seeds  water"), pair("water water", "seeds")].concat();
    bench.write("pairs.jsonl", format!("\u{feff}{rows}"));
    let data = "--set data.train=[{path=\"pairs.jsonl\",format=\"pku\"}] --set preference.loss=token_wise";
    let outcome = bench.succeed(&format!("reward-model --config recipes/score-model.toml --run run {data}"));
    for expected in ["left out 1 pairs whose responses are the same tokens", "2 pairs, "] {
        assert!(outcome.stderr.contains(expected), "no {expected:?} in {}", outcome.stderr);
    }
    bench.train("train", "trained", "");
    let prompt = |text: &str| format!("{}\n", json!({ "prompt": text }));
    let long = "water ".repeat(300);
    bench.write(
        "prompts.jsonl",
        [prompt("how do i brew coffee"), prompt(&long), prompt("How do i  brew coffee")].concat(),
    );
    let outcome = bench.succeed("evaluate trained --prompts prompts.jsonl --json");
    for expected in ["to 1 prompts; left out 1 of more than", "left out 1 that stand there already"] {
        assert!(outcome.stderr.contains(expected), "no {expected:?} in {}", outcome.stderr);
    }
    assert_eq!((&outcome.json()["too_long_prompts"], &outcome.json()["repeated_prompts"]), (&json!(1), &json!(1)));
}

#[test]
fn models_that_declare_more_than_they_need_are_used_and_it_is_said() {
    let bench = Workbench::new();
    bench.copy_model("sft", "model");
    fs::remove_file(bench.path("model/saddle.json")).unwrap();
    edit(&bench, "model/config.json", &json!({"pad_token_id": null}));
    edit(&bench, "model/tokenizer_config.json", &json!({"pad_token": "[NEW]", "chat_template": null}));
    let outcome = bench.succeed("import model --out plain");
    for expected in ["no chat template", "pad_token \"[NEW]\" is not in the vocabulary", "left out"] {
        assert!(outcome.stderr.contains(expected), "no {expected:?} in {}", outcome.stderr);
    }
    let template = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}\
        {% else %}{{ m.content }}{% endif %}{% endfor %}";
    bench.write("model/chat_template.jinja", template);
    bench.succeed("import model --out marked");
    let row = "{\"prompt\": \"how do i brew coffee\", \"response\": \"water\"}";
    bench.succeed_reading("score --log-probs --model marked", row);
    edit(&bench, "model/tokenizer_config.json", &json!({"eos_token": "[END]"}));
    bench.refuse("import model --out ended", &["eos_token \"[END]\" is not in the vocabulary", "needs it"]);
    bench.write(
        "model/chat_template.jinja",
        "{% set ns = namespace(a='x') %}{% for i in range(99) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    );
    bench.succeed("import model --out hostile");
    bench.refuse_reading("generate --model hostile", row, &["chat template", "bytes"]);
}

#[test]
fn pipes_and_sizes_that_nobody_has_are_refused() {
    let bench = Workbench::new();
    for file in ["tokenizer.json", "config.json", "model.safetensors", "saddle.json"] {
        let model = format!("with-{file}");
        bench.copy_model("sft", &model);
        let path = bench.path(&format!("{model}/{file}"));
        fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let outcome = bench.saddle(&format!("generate --model {model}"));
        // What is no file is not there, or is said to be none.
        assert!(outcome.code == 2 || file == "saddle.json", "{file}: {}", outcome.stderr);
    }
    bench.copy_model("sft", "long");
    edit(&bench, "long/config.json", &json!({"max_position_embeddings": 1 << 24}));
    let row = "{\"prompt\": \"how do i brew coffee\"}";
    assert_eq!(bench.succeed_reading(&format!("generate --model long {GENERATE}"), row).rows().len(), 1);
    // A file that is all hole: as large as it says, and nothing in it.
    fs::create_dir(bench.path("sparse")).unwrap();
    bench.write("sparse/adapter_config.json", "{\"peft_type\": \"LORA\", \"r\": 1, \"lora_alpha\": 1}");
    let bytes: u64 = 1 << 42;
    let header = json!({"a": {"dtype": "F32", "shape": [bytes / 4], "data_offsets": [0, bytes]}}).to_string();
    let file = fs::File::create(bench.path("sparse/adapter_model.safetensors")).unwrap();
    std::io::Write::write_all(&mut &file, &[&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat())
        .unwrap();
    file.set_len(8 + header.len() as u64 + bytes).unwrap();
    bench.refuse(
        "export fixture/sft/model --adapter sparse --out out",
        &["sparse/adapter_model.safetensors: tensor a: takes 4096.0 GiB of memory", "are free"],
    );
}
