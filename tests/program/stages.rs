//! Every command does its work and leaves what it promises.

use crate::workbench::Workbench;
use serde_json::{Value, json};
use std::fs;

/// Names in a folder, in order.
fn listing(bench: &Workbench, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(bench.path(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let name =
        |entry: std::io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names =
        entries.map(name).collect::<Result<Vec<_>, _>>().unwrap_or_else(|error| panic!("{folder}: {error}"));
    names.sort();
    names
}

/// Checks that `run` holds all that policy training leaves, and returns its metrics, one object an update.
fn policy_run(bench: &Workbench, run: &str) -> Vec<Value> {
    let verdicts = bench.value(&format!("{run}/verdict.json"));
    assert!(verdicts[0]["held"].is_boolean() && verdicts[0]["updates"].is_u64(), "{verdicts}");
    fs::remove_file(bench.path(&format!("{run}/verdict.json"))).expect("the verdict can be removed");
    stage_run(bench, run)
}

/// Checks that `run` holds all that a training stage leaves, and returns its metrics, one object a step.
fn stage_run(bench: &Workbench, run: &str) -> Vec<Value> {
    assert_eq!(listing(bench, run), ["config.toml", "machine.json", "metrics.jsonl", "model", "tensorboard"]);
    assert_eq!(
        listing(bench, &format!("{run}/model")),
        ["config.json", "model.safetensors", "saddle.json", "tokenizer.json", "tokenizer_config.json"]
    );
    let events = listing(bench, &format!("{run}/tensorboard"));
    assert!(matches!(events.as_slice(), [only] if only.contains("tfevents")), "{events:?}");
    assert!(bench.value(&format!("{run}/machine.json")).is_object());
    bench.rows(&format!("{run}/metrics.jsonl"))
}

fn model_file(bench: &Workbench, run: &str, file: &str) -> Value {
    bench.value(&format!("{run}/model/{file}"))
}

/// The weights that a stage left in `run`, as they are on disk.
fn weights(bench: &Workbench, run: &str) -> Vec<u8> {
    let path = bench.path(&format!("{run}/model/model.safetensors"));
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A number of a JSON object, which must be finite.
fn number(object: &Value, name: &str) -> f64 {
    object[name].as_f64().unwrap_or_else(|| panic!("no number {name} in {object}"))
}

#[test]
fn world_writes_data_prompts_and_a_tokenizer() {
    let bench = Workbench::new();
    let outcome = bench.succeed("world --out world --seed 3");
    assert!(outcome.stdout.contains("the world of seed 3 is in world"), "{}", outcome.stdout);
    let expected = [
        "demonstrations.jsonl",
        "preferences.train.jsonl",
        "preferences.valid.jsonl",
        "prompts.train.jsonl",
        "prompts.valid.jsonl",
        "tokenizer.json",
        "tokenizer_config.json",
        "world.json",
    ];
    assert_eq!(listing(&bench, "world"), expected);
    for (file, field) in [
        ("demonstrations.jsonl", "instruction"),
        ("preferences.train.jsonl", "safer_response_id"),
        ("preferences.valid.jsonl", "better_response_id"),
        ("prompts.train.jsonl", "prompt"),
        ("prompts.valid.jsonl", "kind"),
    ] {
        let rows = bench.rows(&format!("world/{file}"));
        assert!(rows.len() > 100 && rows.iter().all(|row| !row[field].is_null()), "{file}: {field}");
    }
}

#[test]
fn sft_learns_a_policy_from_scratch() {
    let bench = Workbench::new();
    let result = bench.train("sft", "run", "");
    assert_eq!(result["model"], "run/model");
    let metrics = stage_run(&bench, "run");
    assert_eq!(metrics.iter().map(|row| row["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(number(&metrics[7], "loss") < number(&metrics[0], "loss"), "{metrics:?}");
    assert!(number(&result, "loss") > 0.0);
    assert_eq!(
        number(&metrics[7], "held_out_loss"),
        number(&result, "loss"),
        "few held-out rows are all measured on the way"
    );
    assert_eq!(model_file(&bench, "run", "saddle.json")["kind"], "policy");
    assert_eq!(model_file(&bench, "run", "config.json")["num_hidden_layers"], 1);
}

#[test]
fn sft_goes_on_from_a_policy() {
    let bench = Workbench::new();
    let recipe = r#"
        run.threads = 1
        model.from = "fixture/sft/model"
        data.train = [{ path = "fixture/world/demonstrations.jsonl", format = "alpaca", limit_rows = 40 }]
        optimizer = { batch_rows = 16, learning_rate = 1e-2 }
    "#;
    bench.write("recipe.toml", recipe);
    bench.succeed("sft --config recipe.toml --run run");
    assert_eq!(model_file(&bench, "run", "config.json"), model_file(&bench, "fixture/sft", "config.json"));
    let first = number(&bench.rows("run/metrics.jsonl")[0], "loss");
    let fresh = number(&bench.rows("fixture/sft/metrics.jsonl")[0], "loss");
    assert!(first < fresh, "the first loss, {first}, is no better than that of a fresh model, {fresh}");
}

#[test]
fn sft_trains_a_tokenizer_on_its_own_texts() {
    let bench = Workbench::new();
    let row = |index: usize| {
        let row = json!({ "instruction": format!("Wie spät ist es um {index}?"), "input": "", "output": format!("Es ist {index} Uhr — 🐎.") });
        format!("{row}\n")
    };
    bench.write("clock.jsonl", (0..24).map(row).collect::<String>());
    bench.train(
        "sft",
        "run",
        r#"--set model.tokenizer={train_vocabulary=300} --set model.shape.max_tokens=96
           --set data.train=[{path="clock.jsonl",format="alpaca"}]"#,
    );
    assert_eq!(model_file(&bench, "run", "config.json")["vocab_size"], 300);
    let answers = bench.succeed_reading(
        "generate --model run/model --threads 1 --max-new-tokens 16",
        "{\"prompt\": \"Ein Zeichen, das nie vorkam: 漢\"}\n",
    );
    assert_eq!(answers.rows().len(), 1);
}

#[test]
fn reward_model_learns_which_response_is_better() {
    let bench = Workbench::new();
    let result = bench.train("reward-model", "run", "--set preference.normalize=true");
    let metrics = stage_run(&bench, "run");
    assert_eq!(metrics.len(), 3);
    assert_eq!(number(&metrics[2], "held_out_pair_accuracy"), number(&result, "pair_accuracy"));
    assert!((0.0..=1.0).contains(&number(&result, "pair_accuracy")));
    assert!(result.get("sign_accuracy").is_none(), "a reward has no sign to be right about: {result}");
    let card = model_file(&bench, "run", "saddle.json");
    assert_eq!(card["kind"], "reward");
    assert!(number(&card["normalizer"], "std") > 0.0);
    assert_ne!(number(&card["normalizer"], "mean"), 0.0);
    assert!(number(&card["score_range"], "low") < 0.0 && number(&card["score_range"], "high") > 0.0, "{card}");
}

#[test]
fn cost_model_learns_which_response_is_safer_and_keeps_zero_as_the_boundary() {
    let bench = Workbench::new();
    let result = bench.train("cost-model", "run", "--set preference.normalize=true");
    assert_eq!(stage_run(&bench, "run").len(), 3);
    for accuracy in ["pair_accuracy", "sign_accuracy"] {
        assert!((0.0..=1.0).contains(&number(&result, accuracy)), "{result}");
    }
    let card = model_file(&bench, "run", "saddle.json");
    assert_eq!(card["kind"], "cost");
    assert_eq!(number(&card["normalizer"], "mean"), 0.0);
}

/// Trains a policy with more arguments and returns its metrics.
fn policy_training(more: &str) -> Vec<Value> {
    let bench = Workbench::new();
    bench.train("train", "run", more);
    let metrics = policy_run(&bench, "run");
    assert_eq!(metrics.len(), 2);
    for row in &metrics {
        for name in ["reward_mean", "cost_mean", "lambda", "kl_current_reference"] {
            number(row, name);
        }
    }
    assert!(weights(&bench, "run") != weights(&bench, "fixture/sft"), "nothing was learnt");
    assert_eq!(model_file(&bench, "run", "saddle.json")["kind"], "policy");
    metrics
}

#[test]
fn train_moves_the_policy_by_one_step_an_update() {
    let metrics = policy_training("");
    assert_eq!(number(&metrics[0], "kl_current_reference"), 0.0, "training begins at the reference");
    assert_ne!(number(&metrics[1], "kl_current_reference"), 0.0);
}

#[test]
fn score_models_learn_token_by_token_too() {
    let bench = Workbench::new();
    for stage in ["reward-model", "cost-model"] {
        let loss = |run: &str, more: &str| number(&bench.train(stage, &format!("{stage}-{run}"), more), "loss");
        let token_wise = loss("token", "--set preference.loss=token_wise");
        assert!(token_wise.is_finite() && token_wise != loss("sequence", ""), "{stage}: the losses differ");
    }
}

#[test]
fn train_takes_several_minibatches_and_epochs() {
    policy_training("--set ppo.minibatches=2 --set ppo.epochs=2 --set ppo.micro_batch_tokens=64");
}

#[test]
fn train_estimates_both_values_with_one_two_headed_critic() {
    policy_training("--set critics.layout=two_headed --set ppo.minibatches=2");
}

#[test]
fn train_keeps_to_several_constraints() {
    let bench = Workbench::new();
    bench.train(
        "train",
        "run",
        r#"--set constraints.second={from="fixture/cost-model/model",dual={cost_limit=-1,estimator={kind="window"}}}"#,
    );
    let metrics = policy_run(&bench, "run");
    for (name, limit) in [("cost", 0.0), ("second", -1.0)] {
        assert_eq!(number(&metrics[0], &format!("cost_limit_{name}")), limit);
        number(&metrics[0], &format!("lambda_{name}"));
    }
    assert_eq!(metrics[0]["cost_mean_cost"], metrics[0]["cost_mean_second"], "both are judged by one model");
}

const PROMPTS: &str = "fixture/world/prompts.valid.jsonl";

#[test]
fn generate_answers_every_prompt_in_order_and_keeps_its_fields() {
    let bench = Workbench::new();
    let prompts = bench.rows(PROMPTS);
    let answers = bench
        .succeed(&format!("generate --model fixture/sft/model --input {PROMPTS} --threads 1 --max-new-tokens 8"))
        .rows();
    assert_eq!(answers.len(), prompts.len());
    for (prompt, answer) in prompts.iter().zip(&answers) {
        assert_eq!((&prompt["prompt"], &prompt["kind"]), (&answer["prompt"], &answer["kind"]));
        assert!(answer["response"].is_string());
        assert!((1..=8).contains(&answer["tokens"].as_u64().unwrap()), "{answer}");
        assert!(number(answer, "log_prob") < 0.0);
        assert_eq!(answer["ended"].as_bool().unwrap(), answer["finish"] == "stop", "{answer}");
    }
}

#[test]
fn generate_answers_alike_from_files_and_streams_and_however_many_rows_run_at_once() {
    let bench = Workbench::new();
    let prompts: String = bench.read(PROMPTS).lines().take(20).map(|line| format!("{line}\n")).collect();
    bench.write("prompts.jsonl", &prompts);
    for sampling in ["", "--greedy", "--temperature 0.5 --top-k 20 --top-p 0.9"] {
        let generate = format!("generate --model fixture/sft/model --threads 1 --max-new-tokens 8 {sampling}");
        let together = bench.succeed_reading(&format!("{generate} --rows 8"), &prompts);
        let silent = bench.succeed(&format!("{generate} --rows 8 --input prompts.jsonl --output answers.jsonl"));
        assert_eq!((silent.stdout.as_str(), bench.read("answers.jsonl")), ("", together.stdout.clone()));
        let alone = bench.succeed_reading(&format!("{generate} --rows 1"), &prompts);
        for (mut one, mut other) in alone.rows().into_iter().zip(together.rows()) {
            // Sums of a batch are rounded in another order than those of a single row.
            let [first, second] = [&mut one, &mut other].map(|row| row["log_prob"].take().as_f64().unwrap());
            assert!((first - second).abs() < 1e-4, "{first} {second}");
            assert_eq!(one, other, "{sampling}");
        }
    }
}

#[test]
fn generate_answers_nothing_with_nothing() {
    let outcome = Workbench::new().succeed_reading("generate --model fixture/sft/model --threads 1", "\n\n");
    assert_eq!(outcome.stdout, "");
}

#[test]
fn score_says_what_a_response_is_worth_and_whether_it_is_unsafe() {
    let bench = Workbench::new();
    let rows: Vec<Value> = bench.rows("fixture/world/preferences.valid.jsonl");
    let pair =
        |row: &Value| format!("{}\n", json!({ "id": 7, "prompt": row["prompt"], "response": row["response_0"] }));
    let input: String = rows.iter().take(40).map(pair).collect();
    let costs = bench.succeed_reading("score --model fixture/cost-model/model --threads 1", &input).rows();
    let rewards = bench.succeed_reading("score --model fixture/reward-model/model --threads 1", &input).rows();
    assert_eq!((costs.len(), rewards.len()), (40, 40));
    for ((row, cost), reward) in rows.iter().zip(&costs).zip(&rewards) {
        assert_eq!(cost["unsafe"].as_bool().unwrap(), number(cost, "cost") > 0.0, "{cost}");
        assert!(reward.get("unsafe").is_none() && reward.get("cost").is_none(), "{reward}");
        assert_ne!(number(reward, "reward"), number(cost, "cost"));
        assert_eq!((&cost["prompt"], &cost["response"], &cost["id"]), (&row["prompt"], &row["response_0"], &json!(7)));
    }
    let small =
        bench.succeed_reading("score --model fixture/cost-model/model --threads 1 --micro-batch-tokens 40", &input);
    for (one, other) in small.rows().iter().zip(&costs) {
        assert!((number(one, "cost") - number(other, "cost")).abs() < 1e-5, "{one} {other}");
    }
}

/// The demo, as small as it gets.
const SMALL_DEMO: &str = r#"
    --set sft.run.threads=1 --set reward_model.run.threads=1 --set cost_model.run.threads=1 --set train.run.threads=1
    --set world.demonstrations=64 --set world.train_pairs=64 --set world.held_out_pairs=16
    --set sft.model.shape.layers=1 --set sft.model.shape.hidden=16 --set sft.model.shape.intermediate=32
    --set sft.model.shape.heads=2 --set sft.optimizer.max_steps=2 --set reward_model.optimizer.max_steps=2
    --set cost_model.optimizer.max_steps=2 --set train.ppo.updates=2 --set train.ppo.batch_rollouts=8
    --set train.constraints.cost.dual.estimator={kind="fresh",minimum_effective_samples=8}
    --set evaluation.responses=8"#;

#[test]
fn demo_runs_the_whole_method_and_reports_it() {
    let bench = Workbench::new();
    let result = bench.succeed(&format!("demo --run demo --seed 4 --json {SMALL_DEMO}")).json();
    assert_eq!(
        listing(&bench, "demo"),
        [
            "config.toml",
            "cost-model",
            "machine.json",
            "report.html",
            "responses.jsonl",
            "result.json",
            "reward-model",
            "sft",
            "train",
            "world"
        ]
    );
    assert_eq!(result, bench.value("demo/result.json"));
    for side in ["before", "after"] {
        number(&result[side]["gold_helpfulness"], "mean");
        assert!((0.0..=1.0).contains(&number(&result[side]["unsafe_ratio"], "mean")));
    }
    let responses = bench.rows("demo/responses.jsonl");
    let sampled = responses.iter().filter(|row| row["decoding"] == "sampled").count();
    assert_eq!(sampled, 16, "8 answers of each of two policies");
    let report = bench.read("demo/report.html");
    assert!(
        report.trim_start().to_lowercase().starts_with("<!doctype html>") && report.trim_end().ends_with("</html>")
    );
    assert!(report.contains("gold helpfulness"));
    for (stage, steps) in [("sft", 2), ("reward-model", 2), ("cost-model", 2), ("train", 2)] {
        assert_eq!(bench.rows(&format!("demo/{stage}/metrics.jsonl")).len(), steps, "{stage}");
        assert_eq!(listing(&bench, &format!("demo/{stage}/tensorboard")).len(), 1, "{stage}");
    }
    bench.succeed("sft --config demo/sft/config.toml --run again");
    assert!(
        weights(&bench, "again") == weights(&bench, "demo/sft"),
        "the stage's own configuration gives another model"
    );
}

#[test]
fn demo_replaces_an_earlier_demo_unless_it_is_to_be_kept() {
    let bench = Workbench::new();
    let demo = format!("demo --run demo {SMALL_DEMO} --set train.ppo.updates=1");
    let table = bench.succeed(&demo).stdout;
    for expected in ["gold helpfulness", "unsafe answers", "report: demo/report.html"] {
        assert!(table.contains(expected), "{table}");
    }
    bench.write("demo/notes.txt", "mine");
    let before = bench.read("demo/result.json");
    bench.succeed(&format!("{demo} --seed 9"));
    assert_ne!(bench.read("demo/result.json"), before);
    assert_eq!(bench.read("demo/notes.txt"), "mine");
    bench.refuse(&format!("{demo} --keep"), &["demo is not empty"]);
}

#[test]
fn a_dry_run_prints_a_whole_recipe_and_makes_nothing() {
    let bench = Workbench::new();
    for (stage, recipe) in [
        ("sft", "sft"),
        ("reward-model", "score-model"),
        ("cost-model", "score-model"),
        ("dpo", "dpo"),
        ("train", "train"),
    ] {
        let printed = bench
            .succeed(&format!("{stage} --config recipes/{recipe}.toml --run run --dry-run --set run.seed=5"))
            .stdout;
        assert!(printed.contains("seed = 5") && printed.contains("beta2"), "{printed}");
        bench.write("printed.toml", &printed);
        assert_eq!(bench.succeed(&format!("{stage} --config printed.toml --dry-run")).stdout, printed, "{stage}");
    }
    assert!(bench.succeed("demo --run run --dry-run").stdout.contains("[train.constraints.cost.dual]"));
    assert!(!bench.path("run").is_dir() && !bench.path("runs").is_dir());
}

#[test]
fn overwriting_replaces_the_run_that_is_there() {
    let bench = Workbench::new();
    let first = bench.train("sft", "run", "--set run.seed=1");
    let second = bench.train("sft", "run", "--set run.seed=2 --set optimizer.max_steps=4 --overwrite");
    assert_ne!(first["weights_hash"], second["weights_hash"]);
    assert_eq!(stage_run(&bench, "run").len(), 4);
}

#[test]
fn doctor_says_what_the_machine_has() {
    let bench = Workbench::new();
    let words = bench.saddle("doctor");
    let json = bench.saddle("doctor --json");
    let missing = json.json()["findings"].as_array().unwrap().iter().any(|finding| finding["status"] == "missing");
    for outcome in [&words, &json] {
        assert_eq!(outcome.code, if missing { 3 } else { 0 }, "{}", outcome.stderr);
        assert!(outcome.stdout.contains("libtorch"), "{}", outcome.stdout);
    }
    assert!(words.stdout.starts_with(concat!("saddle ", env!("CARGO_PKG_VERSION"))), "{}", words.stdout);
    let of_a_run = bench.saddle(concat!("doctor --config ", env!("CARGO_MANIFEST_DIR"), "/configs/train.toml"));
    for part in ["libtorch", "1 × learner", "join→learner: 256 items", "memory is not estimated: there is no"] {
        assert!(of_a_run.stdout.contains(part), "{part}: {}", of_a_run.stdout);
    }
    bench.refuse("doctor --config nowhere.toml", &["nowhere.toml"]);
}

#[test]
fn help_is_there_for_every_command() {
    let bench = Workbench::new();
    let commands =
        ["demo", "sft", "reward-model", "cost-model", "dpo", "train", "generate", "score", "world", "judge", "doctor"];
    let overview = bench.succeed("--help").stdout;
    for command in commands {
        assert!(overview.contains(command), "{overview}");
        let help = bench.succeed(&format!("{command} --help")).stdout;
        assert!(help.contains(&format!("Usage: saddle {command}")), "{help}");
    }
    assert_eq!(bench.succeed("--version").stdout.trim(), concat!("saddle ", env!("CARGO_PKG_VERSION")));
    bench.refuse("", &["Usage: saddle"]);
}
