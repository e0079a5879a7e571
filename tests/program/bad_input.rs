//! Whatever is wrong with what the user gives, the program says what, where and the remedy, and leaves nothing half done.
//!
//! [`Workbench::refuse`] checks what holds for all of these: exit code 2, nothing on standard output, no panic, no model.

use crate::workbench::Workbench;
use serde_json::{Value, json};
use std::fs;

const SFT: &str = "sft --config recipes/sft.toml --run run";
const REWARD_MODEL: &str = "reward-model --config recipes/score-model.toml --run run";
const COST_MODEL: &str = "cost-model --config recipes/score-model.toml --run run";
const TRAIN: &str = "train --config recipes/train.toml --run run";
const GENERATE: &str = "generate --model fixture/sft/model --threads 1";
const SCORE: &str = "score --model fixture/cost-model/model --threads 1";

/// A labelled pair that is right, with `changes` made to it.
fn pair(changes: &Value) -> String {
    let mut row = json!({
        "prompt": "how do i brew coffee", "response_0": "seeds water", "response_1": "water",
        "better_response_id": 0, "safer_response_id": 1, "is_response_0_safe": true, "is_response_1_safe": true,
    });
    for (field, value) in changes.as_object().into_iter().flatten() {
        row[field] = value.clone();
    }
    format!("{row}\n")
}

/// `rows` right pairs.
fn pairs(rows: usize) -> String {
    pair(&json!({})).repeat(rows)
}

// The command line and the recipe.

#[test]
fn a_command_that_does_not_exist_is_refused() {
    Workbench::new().refuse("trian", &["trian", "train"]);
    Workbench::new().refuse("sft", &["--config <FILE>"]);
}

#[test]
fn every_problem_of_a_recipe_is_told_at_once() {
    Workbench::new().refuse(
        &format!("{SFT} --set optimizer.lerning_rate=1 --set optimizer.batch_rows=0 --set data.held_out_ratio=1.5 --set run.sead=2"),
        &[
            "recipes/sft.toml: this configuration cannot be used",
            "optimizer.lerning_rate: there is no such key",
            "run.sead: there is no such key",
            "optimizer.batch_rows: must be at least 1",
            "data.held_out_ratio: must be in 0..1, is 1.5",
        ],
    );
}

#[test]
fn settings_of_policy_training_are_checked_before_anything_is_read() {
    Workbench::new().refuse(
        &format!("{TRAIN} --set policy.from=nowhere --set ppo.clip_ratio=-1 --set generation.temperature=0 --set ppo.minibatches=9 --set constraints={{}}"),
        &[
            "ppo.clip_ratio: must be positive, is -1",
            "generation.temperature: must be a positive number",
            "ppo.minibatches: must be at most batch_rollouts = 8, is 9",
            "constraints: name at least one",
        ],
    );
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_its_key() {
    Workbench::new()
        .refuse(&format!("{SFT} --set optimizer.epochs=many"), &["recipes/sft.toml: optimizer.epochs: ", "many"]);
    Workbench::new()
        .refuse(&format!("{SFT} --set optimizer.epochs=-1"), &["recipes/sft.toml: optimizer.epochs: ", "-1"]);
    Workbench::new().refuse(&format!("{SFT} --set data.bad_rows=ignore"), &["data.bad_rows: ", "ignore", "skip"]);
}

#[test]
fn a_key_that_is_needed_and_absent_is_named() {
    let bench = Workbench::new();
    bench.write("recipe.toml", "[model]\nfrom = \"fixture/sft/model\"\n");
    bench.refuse("sft --config recipe.toml --run run", &["recipe.toml: data: is needed, and is not there"]);
}

#[test]
fn a_recipe_that_cannot_be_read_is_refused_with_its_path() {
    let bench = Workbench::new();
    bench
        .refuse("sft --config nowhere.toml --run run", &["cannot read the configuration nowhere.toml", "No such file"]);
    bench.write("latin1.toml", b"# caf\xe9\n");
    bench.refuse("sft --config latin1.toml --run run", &["cannot read the configuration latin1.toml", "UTF-8"]);
}

#[test]
fn a_recipe_that_is_not_toml_is_refused_with_the_line() {
    let bench = Workbench::new();
    bench.write("broken.toml", "[run]\nseed = 1\nthreads == 2\n");
    bench.refuse("sft --config broken.toml --run run", &["broken.toml", "line 3", "threads == 2"]);
}

#[test]
fn an_override_that_makes_no_sense_is_refused() {
    Workbench::new().refuse(&format!("{SFT} --set optimizer"), &["--set optimizer: expected KEY=VALUE"]);
    Workbench::new()
        .refuse(&format!("{SFT} --set run.threads.more=1"), &["--set run.threads.more=1: threads is not a section"]);
}

#[test]
fn a_fresh_model_needs_a_shape_that_can_be_built() {
    let bench = Workbench::new();
    bench.refuse(&format!("{SFT} --set model.shape.heads=3"), &["model.shape: this decoder cannot be built", "3"]);
    bench.refuse(&format!("{SFT} --set model.from=fixture/sft/model"), &["model.from: say either"]);
    bench.refuse(&format!("{SFT} --set model.tokenizer.train_vocabulary=300"), &["model.tokenizer: say either"]);
    bench.refuse(
        &format!("{SFT} --set model.tokenizer={{train_vocabulary=10}}"),
        &["a byte-level vocabulary must have", "not 10"],
    );
}

#[test]
fn a_device_that_no_machine_has_is_refused() {
    Workbench::new().refuse(&format!("{SFT} --set run.device=tpu"), &["device \"tpu\" is unknown", "\"cpu\""]);
    Workbench::new().refuse(&format!("{GENERATE} --device tpu"), &["device \"tpu\" is unknown"]);
}

#[test]
fn a_gpu_that_this_machine_lacks_is_a_failure_of_the_environment() {
    let bench = Workbench::new();
    let findings = bench.saddle("doctor --json").json();
    let findings = findings["findings"].as_array().unwrap();
    if findings.iter().any(|finding| finding["subject"] == "cuda" && finding["status"] == "ok") {
        println!("skipped: this machine has CUDA");
        return;
    }
    bench.fail_reading(&format!("{GENERATE} --device cuda:0"), "", 3, &["CUDA", "remedy: "]);
    bench.fail_reading(&format!("{SFT} --set run.device=cuda:0"), "", 3, &["CUDA", "remedy: "]);
}

// The run directory.

#[test]
fn a_run_directory_with_something_in_it_is_left_alone() {
    let bench = Workbench::new();
    fs::create_dir(bench.path("run")).unwrap();
    bench.write("run/thesis.tex", "years of work");
    bench.refuse(SFT, &["run is not empty", "name another directory"]);
    bench.refuse(&format!("{SFT} --overwrite"), &["run is not a run directory", "config.toml"]);
    assert_eq!(bench.read("run/thesis.tex"), "years of work");
    assert_eq!(fs::read_dir(bench.path("run")).unwrap().count(), 1);
}

#[test]
fn a_run_directory_that_is_a_file_is_refused() {
    let bench = Workbench::new();
    bench.write("run", "a file");
    bench.refuse(SFT, &["run is a file: name a directory"]);
    assert_eq!(bench.read("run"), "a file");
}

// Models.

#[test]
fn a_model_that_is_not_there_is_refused_with_its_path() {
    let bench = Workbench::new();
    bench.refuse("generate --model nowhere", &["nowhere: no such directory"]);
    bench.refuse("score --model fixture/world", &["fixture/world: holds no config.json"]);
    bench.refuse(&format!("{TRAIN} --set policy.from=nowhere"), &["nowhere: no such directory"]);
    bench.refuse(&format!("{REWARD_MODEL} --set model.from=nowhere"), &["nowhere: no such directory"]);
}

#[test]
fn a_model_of_another_kind_than_is_needed_is_refused() {
    let cost_for_reward = format!("{TRAIN} --set reward_model.from=fixture/cost-model/model");
    let reward_for_cost = format!("{TRAIN} --set constraints.cost.from=fixture/reward-model/model");
    let scorer_for_policy = format!("{TRAIN} --set policy.from=fixture/cost-model/model");
    for (command, expected) in [
        (cost_for_reward.as_str(), "fixture/cost-model/model: is a cost model, but a reward model is needed here"),
        (&reward_for_cost, "fixture/reward-model/model: is a reward model, but a cost model is needed here"),
        (&scorer_for_policy, "fixture/cost-model/model: is a cost model, but a policy model is needed here"),
        ("score --model fixture/sft/model", "fixture/sft/model: is a policy model, but a reward"),
        ("generate --model fixture/reward-model/model", "fixture/reward-model/model: is a reward model, but a policy"),
    ] {
        Workbench::new().refuse(command, &[expected]);
    }
}

#[test]
fn weights_that_were_cut_short_are_refused() {
    let bench = Workbench::new();
    bench.copy_model("sft", "model");
    let whole = fs::read(bench.path("model/model.safetensors")).unwrap();
    for length in [3, 60, whole.len() / 2, whole.len() - 1] {
        bench.write("model/model.safetensors", &whole[..length]);
        bench.refuse("generate --model model", &["model/model.safetensors"]);
    }
    fs::remove_file(bench.path("model/model.safetensors")).unwrap();
    bench.refuse("generate --model model", &["model: holds neither model.safetensors"]);
}

#[test]
fn weights_of_another_shape_than_configured_are_refused_with_the_tensor() {
    let bench = Workbench::new();
    bench.copy_model("sft", "model");
    let config = bench.value("model/config.json");
    let with = |key: &str, value: Value| {
        let mut changed = config.clone();
        changed[key] = value;
        bench.write("model/config.json", changed.to_string());
    };
    with("intermediate_size", json!(48));
    bench.refuse("generate --model model", &["model/model.safetensors", "mlp", "[32, 16]", "[48, 16]"]);
    with("num_hidden_layers", json!(2));
    bench.refuse("generate --model model", &["model/model.safetensors", "lacks", "layers.1"]);
    with("num_attention_heads", json!(5));
    bench.refuse("generate --model model", &["model/config.json", "num_attention_heads"]);
    with("hidden_size", json!("wide"));
    bench.refuse("generate --model model", &["model/config.json", "hidden_size"]);
    bench.write("model/config.json", "{");
    bench.refuse("generate --model model", &["model/config.json"]);
}

#[test]
fn a_score_model_that_reads_other_tokens_than_the_policy_is_refused() {
    let bench = Workbench::new();
    let fresh = r#"--set model={} --set model.shape={layers=1,hidden=16,intermediate=32,heads=2,max_tokens=160}
                   --set model.tokenizer.train_vocabulary=300"#;
    bench.train("cost-model", "bytes", fresh);
    bench.refuse(
        &format!("{TRAIN} --set constraints.cost.from=bytes/model"),
        &["cost model of constraint cost has another tokenizer than the policy", "model.from"],
    );
}

#[test]
fn a_tokenizer_that_was_exchanged_is_refused() {
    let bench = Workbench::new();
    bench.copy_model("sft", "model");
    let tokenizer = bench.read("model/tokenizer.json").replace("coffee", "cocoa");
    bench.write("model/tokenizer.json", tokenizer);
    bench.refuse("generate --model model", &["model: the tokenizer's fingerprint", "put back the tokenizer"]);
    bench.write("model/tokenizer.json", "{}");
    bench.refuse("generate --model model", &["model/tokenizer.json"]);
}

// Data of the stages.

/// Refuses `stage` with `rows` as its only training data.
fn refuse_rows(stage: &str, rows: impl AsRef<[u8]>, expected: &[&str]) {
    let bench = Workbench::new();
    bench.write("rows.jsonl", rows);
    let format = if stage.starts_with("sft") { "alpaca" } else { "pku" };
    bench.refuse(&format!("{stage} --set data.train=[{{path=\"rows.jsonl\",format=\"{format}\"}}]"), expected);
}

#[test]
fn a_data_file_that_is_not_there_is_refused_with_its_path() {
    let bench = Workbench::new();
    for (file, expected) in [
        ("nowhere.jsonl", "no data file at nowhere.jsonl"),
        ("fixture", "fixture is not a file"),
        ("recipes/sft.toml", "cannot tell the layout of recipes/sft.toml from its name"),
    ] {
        let command = format!("{SFT} --set data.train=[{{path=\"{file}\",format=\"alpaca\"}}]");
        bench.refuse(&command, &[expected]);
    }
}

#[test]
fn rows_of_another_format_than_the_stage_takes_are_refused() {
    Workbench::new().refuse(
        &format!("{SFT} --set data.train=[{{path=\"fixture/world/preferences.train.jsonl\",format=\"pku\"}}]"),
        &["fixture/world/preferences.train.jsonl", "pku", "use one of: alpaca"],
    );
    Workbench::new().refuse(
        &format!("{REWARD_MODEL} --set data.train=[{{path=\"x.jsonl\",format=\"hh\"}}]"),
        &["x.jsonl", "label: say whether hh pairs"],
    );
}

#[test]
fn broken_json_is_refused_with_its_line() {
    refuse_rows(REWARD_MODEL, format!("{}{{\"prompt\": \n", pairs(2)), &["rows.jsonl:3: broken JSON", "\"skip\""]);
}

#[test]
fn broken_utf8_is_refused_with_its_line() {
    let rows = [pair(&json!({})).as_bytes(), b"{\"prompt\": \"caf\xe9\"}\n"].concat();
    refuse_rows(COST_MODEL, rows, &["rows.jsonl:2: not UTF-8 after byte 15"]);
}

#[test]
fn rows_that_contradict_the_format_are_refused_with_line_and_field() {
    for (change, expected) in [
        (
            json!({ "safer_response_id": 0, "is_response_0_safe": false }),
            "`safer_response_id` is 0, but response 0 is labelled unsafe and the other one safe",
        ),
        (json!({ "response_1": "seeds water" }), "the two responses are identical"),
        (json!({ "better_response_id": 2 }), "`better_response_id` must be 0, 1 or null, not 2"),
        (json!({ "response_0": 5 }), "`response_0` must be a string, not a number"),
        (json!({ "prompt": "  " }), "`prompt` is empty"),
        (json!({ "is_response_1_safe": "yes" }), "`is_response_1_safe` must be true, false or null, not a string"),
    ] {
        let rows = [pairs(1), pair(&change)].concat();
        refuse_rows(REWARD_MODEL, &rows, &[&format!("rows.jsonl:2: {expected}"), "mend the row"]);
    }
    refuse_rows(REWARD_MODEL, "{\"prompt\": \"how\"}\n", &["rows.jsonl:1: the field `response_0` is missing"]);
    refuse_rows(SFT, "[]\n", &["rows.jsonl:1: the row must be an object, not an array"]);
}

#[test]
fn bad_rows_are_left_out_and_counted_if_the_recipe_says_so() {
    let bench = Workbench::new();
    let contradictory = pair(&json!({ "safer_response_id": 0, "is_response_0_safe": false }));
    let identical = pair(&json!({ "response_1": "seeds water" }));
    bench.write("rows.jsonl", [pairs(3), contradictory.repeat(2), "oops\n".to_owned(), identical, pairs(3)].concat());
    let outcome = bench.succeed(&format!(
        "{COST_MODEL} --set data.train=[{{path=\"rows.jsonl\",format=\"pku\"}}] --set data.bad_rows=skip"
    ));
    for expected in
        ["4 rows skipped: broken_json 1, contradictory_labels 2, identical_responses 1", "6 pairs, 16 held out"]
    {
        assert!(outcome.stderr.contains(expected), "no {expected:?} in {}", outcome.stderr);
    }
}

#[test]
fn data_without_a_single_row_is_refused() {
    for stage in [SFT, REWARD_MODEL] {
        refuse_rows(stage, "", &["rows.jsonl gives no usable row", "check its format"]);
    }
    refuse_rows(
        &format!("{COST_MODEL} --set data.bad_rows=skip"),
        "oops\noops\n",
        &["rows.jsonl gives no usable row", "broken_json 2"],
    );
    Workbench::new().refuse(&format!("{SFT} --set data.train=[]"), &["data.train: name at least one source"]);
}

#[test]
fn pairs_without_the_label_that_the_stage_learns_from_are_refused() {
    let rows = pair(&json!({ "safer_response_id": null })).repeat(4);
    refuse_rows(COST_MODEL, &rows, &["no training row with safer_response_id is left"]);
    refuse_rows(
        REWARD_MODEL,
        pair(&json!({ "better_response_id": null })),
        &["no training row with better_response_id is left"],
    );
}

#[test]
fn data_whose_rows_are_all_too_long_is_refused() {
    for stage in [SFT, REWARD_MODEL, COST_MODEL] {
        Workbench::new()
            .refuse(&format!("{stage} --set data.max_tokens=4"), &["rows of more than 4 tokens", "data.max_tokens"]);
    }
    Workbench::new().refuse(
        &format!("{TRAIN} --set prompts.max_tokens=2"),
        &["left out 32 rows of more than 2 tokens", "no prompt is left to use; look at prompts.max_tokens"],
    );
}

#[test]
fn prompts_that_leave_no_room_for_an_answer_end_the_training() {
    let bench = Workbench::new();
    let prompt = json!({ "prompt": "water ".repeat(40) });
    bench.write("prompts.jsonl", format!("{prompt}\n"));
    bench.refuse(
        &format!("{TRAIN} --set prompts.train=[{{path=\"prompts.jsonl\",format=\"prompts\"}}]"),
        &["left out 1 rows of more than 31 tokens", "no prompt is left to use; look at prompts.max_tokens"],
    );
}

#[test]
fn a_mixture_needs_a_proportion_for_every_source_or_for_none() {
    let source = |more: &str| format!("{{path=\"fixture/world/demonstrations.jsonl\",format=\"alpaca\"{more}}}");
    let refuse = |sources: String, expected: &[&str]| {
        Workbench::new().refuse(&format!("{SFT} --set data.train=[{sources}]"), expected);
    };
    refuse(
        format!("{},{}", source(",proportion=0.5"), source("")),
        &["proportion: 1 of 2 sources have one; give one to every source or to none"],
    );
    refuse(
        source(",proportion=-1"),
        &["fixture/world/demonstrations.jsonl", "proportion: must be a positive number, not -1"],
    );
    refuse(source(",limit_rows=0"), &["limit_rows: must be at least 1"]);
}

#[test]
fn a_preference_stage_without_held_out_rows_is_refused() {
    Workbench::new().refuse(
        &format!("{REWARD_MODEL} --set data.held_out=[] --set data.held_out_ratio=0"),
        &["no held-out row with better_response_id", "data.held_out_ratio"],
    );
}

// Streams.

#[test]
fn lines_that_are_no_prompts_are_refused_with_their_place() {
    for (line, expected) in [
        ("{\"text\": \"how\"}", "the field `prompt` is missing"),
        ("{\"prompt\": 5}", "`prompt` must be a string or a list of turns, not a number"),
        ("{\"prompt\": \" \"}", "`prompt` is empty"),
        ("{\"prompt\": [{\"role\": \"assistant\", \"content\": \"a\"}]}", "`prompt` is not a conversation"),
        ("[\"how\"]", "not a JSON object"),
        ("{\"prompt\": ", "not a JSON object"),
    ] {
        let input = format!("{{\"prompt\": \"how\"}}\n\n{line}\n");
        Workbench::new().refuse_reading(GENERATE, &input, &[&format!("standard input:3: {expected}")]);
    }
    let bench = Workbench::new();
    bench.write("prompts.jsonl", b"\xff\n");
    bench.refuse(&format!("{GENERATE} --input prompts.jsonl"), &["prompts.jsonl:1: not a JSON object"]);
    Workbench::new().refuse_reading(
        SCORE,
        "{\"prompt\": \"how\"}\n",
        &["standard input:1: the field `response` is missing"],
    );
}

#[test]
fn what_is_longer_than_the_model_reads_is_refused_with_its_place_and_length() {
    let long = "water ".repeat(40);
    let prompt = format!("{}\n", json!({ "prompt": long }));
    Workbench::new().refuse_reading(
        GENERATE,
        &prompt,
        &["standard input:1: the prompt has 42 tokens, the model reads 32"],
    );
    let answered = format!("{}\n", json!({ "prompt": "water", "response": long }));
    Workbench::new().refuse_reading(
        SCORE,
        &answered,
        &["standard input:1: prompt and response have 44 tokens, the model reads 32"],
    );
}

#[test]
fn streams_that_cannot_be_opened_are_refused_with_their_path() {
    Workbench::new().refuse(&format!("{GENERATE} --input nowhere.jsonl"), &["cannot read nowhere.jsonl"]);
    Workbench::new()
        .refuse(&format!("{GENERATE} --output nowhere/answers.jsonl"), &["cannot write nowhere/answers.jsonl"]);
}

#[test]
fn an_output_that_is_the_input_is_refused_and_the_input_kept() {
    let bench = Workbench::new();
    let rows = "{\"prompt\": \"how\", \"response\": \"water\"}\n";
    bench.write("rows.jsonl", rows);
    for command in [GENERATE, SCORE] {
        bench.refuse(&format!("{command} --input rows.jsonl --output ./rows.jsonl"), &["rows.jsonl", "--output"]);
        assert_eq!(bench.read("rows.jsonl"), rows);
    }
}

#[test]
fn an_input_that_cannot_be_read_costs_nobody_an_earlier_output() {
    let bench = Workbench::new();
    bench.write("answers.jsonl", "hours of work\n");
    bench.refuse(&format!("{GENERATE} --input nowhere.jsonl --output answers.jsonl"), &["nowhere.jsonl"]);
    assert_eq!(bench.read("answers.jsonl"), "hours of work\n");
}

#[test]
fn sampling_settings_out_of_range_are_refused_with_the_flag() {
    for (flag, expected) in [
        ("--temperature 0", "--temperature: must be a positive number; --greedy"),
        ("--temperature=-1", "--temperature: must be a positive number"),
        ("--temperature nan", "--temperature: must be a positive number"),
        ("--top-p 0", "--top-p: must be above 0 and at most 1"),
        ("--top-p 1.5", "--top-p: must be above 0 and at most 1"),
        ("--max-new-tokens 0", "--max-new-tokens: must be at least 1"),
        ("--rows 0", "--rows: must be at least 1"),
        ("--greedy --temperature 2", "cannot be used with"),
    ] {
        Workbench::new().refuse(&format!("{GENERATE} {flag}"), &[expected]);
    }
    Workbench::new().refuse(&format!("{SCORE} --micro-batch-tokens 0"), &["--micro-batch-tokens"]);
}

#[test]
fn a_demo_that_cannot_be_run_is_refused_with_its_keys() {
    Workbench::new().refuse(
        "demo --run run --set world.step_value=-1 --set evaluation.responses=1 --set train.ppo.updates=0 --set sft.model.shap=1",
        &[
            "configs/demo.toml",
            "world.step_value: must be positive",
            "evaluation.responses: must be at least 2",
            "train.ppo.updates: must be at least 1",
            "sft.model.shap: there is no such key",
        ],
    );
}
