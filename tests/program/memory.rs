//! `saddle train --dry-run` says what a run needs in memory, from the shapes of its models.

use crate::workbench::Workbench;

const DRY_RUN: &str = "train --config recipes/train.toml --dry-run";
/// Where the recipes of the project are.
const CONFIGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/configs");
/// Models that are not there yet.
const ABSENT: &str = "--set policy.from=absent --set reward_model.from=absent --set constraints.cost.from=absent";

/// What the line that contains `part` says, in GiB.
fn gib(plan: &str, part: &str) -> f64 {
    let line = plan.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("no {part} in {plan}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words.last(), Some(&"GiB"), "{line}");
    words[words.len() - 2].parse().unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// The plan of `more` for models of 7 billion parameters.
fn plan_of_seven_billion(more: &str) -> String {
    Workbench::new().succeed(&format!("{DRY_RUN} {ABSENT} --shape {CONFIGS}/llama-7b.json {more}")).stdout
}

#[test]
fn models_that_are_there_are_measured_by_their_configuration_alone() {
    let bench = Workbench::new();
    for stage in ["sft", "reward-model", "cost-model"] {
        bench.copy_model(stage, stage);
        std::fs::remove_file(bench.path(stage).join("model.safetensors")).unwrap();
    }
    let models = "--set policy.from=sft --set reward_model.from=reward-model --set constraints.cost.from=cost-model";
    let plan = bench.succeed(&format!("{DRY_RUN} {models}")).stdout;
    assert!(plan.contains("# memory of cpu, estimated") && gib(&plan, "at the most") < 1.0, "{plan}");
    let recipe: String = plan.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    bench.write("again.toml", recipe);
    assert_eq!(
        bench.succeed("train --config again.toml --dry-run").stdout,
        plan,
        "the plan is a comment of the recipe"
    );
}

#[test]
fn weights_optimiser_and_cache_are_those_of_the_shape() {
    let plan = plan_of_seven_billion("--set generation.rows=64 --set prompts.max_tokens=250");
    let weights = 6_738_423_808.0 * 4.0 / 1024f64.powi(3);
    assert!((gib(&plan, "learner: weights of policy") - weights).abs() < 0.01, "{plan}");
    assert!((gib(&plan, "learner: gradients and moments of policy") - 3.0 * weights).abs() < 0.01, "{plan}");
    let cache = 64.0 * 256.0 * 2.0 * 32.0 * 4096.0 * 4.0 / 1024f64.powi(3);
    assert!((gib(&plan, "keys and values of 64 × 256 tokens") - cache).abs() < 0.01, "{plan}");
}

#[test]
fn a_shared_critic_needs_less_and_stages_at_the_same_time_need_more() {
    let total = |more: &str| gib(&plan_of_seven_billion(more), "at the most");
    let plain = total("");
    assert!(total("--set critics.layout=two_headed") < plain - 90.0, "a critic with its optimiser less");
    assert!(total("--set schedule.kind=asynchronous") > plain + 50.0, "two published copies of the weights more");
    assert!(total("--set ppo.micro_batch_tokens=64 --set prompts.max_tokens=16") <= plain);
}

#[test]
fn adapters_share_the_weights_beneath_and_need_no_optimiser_for_them() {
    let plan =
        plan_of_seven_billion("--set lora.rank=16 --set critics.layout=two_headed --set schedule.kind=asynchronous");
    let adapters = 16.0 * 32.0 * (4.0 * 8192.0 + 3.0 * 15104.0) * 4.0 / 1024f64.powi(3);
    assert!((gib(&plan, "learner: adapters of policy") - adapters).abs() < 0.01, "{plan}");
    assert!((gib(&plan, "learner: 2 × published adapters") - 2.0 * adapters).abs() < 0.01, "{plan}");
    assert!(gib(&plan, "reference: weights") > 25.0, "{plan}");
    let whole = plan_of_seven_billion("--set critics.layout=two_headed --set schedule.kind=asynchronous");
    assert!(gib(&plan, "at the most") < gib(&whole, "at the most") / 2.0);
    let unknown = format!("{DRY_RUN} {ABSENT} --shape {CONFIGS}/llama-7b.json --set lora.targets=[\"query\"]");
    Workbench::new().refuse(&format!("{unknown} --device-memory-gib 80"), &["no projection called \"query\""]);
}

#[test]
fn frozen_weights_in_bf16_take_half_and_generators_have_none_of_their_own_on_a_gpu() {
    let run = "--set lora.rank=16 --set critics.layout=two_headed --set schedule.kind=asynchronous";
    let plan = |more: &str| plan_of_seven_billion(&format!("{run} {more}"));
    let (full, half) = (plan(""), plan("--set precision.frozen=bf16"));
    for stage in ["reference", "reward", "cost"] {
        let part = format!("{stage}: weights");
        assert!((gib(&full, &part) - 2.0 * gib(&half, &part)).abs() < 0.02, "{full}{half}");
    }
    assert_eq!(gib(&full, "learner: adapters of policy"), gib(&half, "learner: adapters of policy"));
    assert!(gib(&half, "generator: 1 × packed weights") > 25.0 && half.contains("a matrix, widened"), "{half}");
    let precision = "--set precision={frozen=\"bf16\",generation=\"bf16\",scoring=\"bf16\",learning=\"bf16\"}";
    let gpu = plan(&format!("--set run.device=cuda:0 {precision}"));
    assert!(!gpu.contains("generator: 1 × packed") && !gpu.contains("widened"), "{gpu}");
    assert!(!gpu.contains("rounded to bf16"), "{gpu}");
    let rounded = plan("--set run.device=cuda:0 --set precision.generation=bf16");
    assert!(gib(&rounded, "generator: 1 × weights rounded to bf16") > 12.0, "{rounded}");
}

#[test]
fn another_device_has_copies_of_its_own() {
    let plan = plan_of_seven_billion(
        "--set schedule.kind=asynchronous --set run.device=cuda:0 --set placement.reward={device=\"cuda:1\",count=2}",
    );
    let (first, second) = plan.split_once("# memory of cuda:1").expect("two devices");
    assert!(first.contains("# memory of cuda:0") && first.contains("learner:"), "{plan}");
    assert!(gib(second, "reward: 2 × copy of the weights") > 49.0 && !second.contains("learner:"), "{plan}");
}

#[test]
fn a_run_that_needs_more_than_a_device_has_is_refused_with_its_plan() {
    let bench = Workbench::new();
    let plan = format!("{DRY_RUN} {ABSENT} --shape {CONFIGS}/llama-7b.json");
    bench.refuse(
        &format!("{plan} --device-memory-gib 80"),
        &[
            "cpu has 80 GiB, and the run needs about",
            "learner: gradients and moments of policy",
            "lower generation.rows",
        ],
    );
    bench.succeed(&format!("{plan} --device-memory-gib 4000"));
}

#[test]
fn a_shape_that_is_not_known_is_said_and_matters_only_to_who_asks() {
    let bench = Workbench::new();
    let expected = "there is no absent/config.json; --shape FILE gives the shape";
    let outcome = bench.saddle(&format!("{DRY_RUN} {ABSENT}"));
    assert!(outcome.stdout.contains(&format!("# memory is not estimated: {expected}")), "{}", outcome.stdout);
    assert!(outcome.code == 2 && outcome.stderr.contains("policy.from: there is no "), "{}", outcome.stderr);
    bench.refuse(&format!("{DRY_RUN} {ABSENT} --device-memory-gib 8"), &[expected]);
    bench.refuse("train --config recipes/train.toml --shape x", &["--dry-run"]);
}

#[test]
fn the_recipe_of_beaver_is_planned_without_its_models() {
    let recipe = format!("train --config {CONFIGS}/beaver-7b.toml --dry-run --shape {CONFIGS}/llama-7b.json");
    let bench = Workbench::new();
    let plan = bench.succeed(&format!("{recipe} --device-memory-gib 79")).stdout;
    assert!(gib(&plan, "at the most") > 40.0 && plan.contains("# memory of cuda:0, estimated"), "{plan}");
    assert!(plan.contains("# fits: every device has 79 GiB"), "{plan}");
    let weights = 6_738_423_808.0 * 2.0 / 1024f64.powi(3);
    assert!((gib(&plan, "reference: weights") - weights).abs() < 0.01, "{plan}");
    bench.refuse(&format!("{recipe} --set precision.frozen=f32 --device-memory-gib 79"), &["cuda:0 has 79 GiB"]);
    bench.refuse(&format!("{recipe} --device-memory-gib 40"), &["cuda:0 has 40 GiB"]);
}
