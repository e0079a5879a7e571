//! The asynchronous schedule of `saddle train`: the same bits without staleness, corrected rollouts with it, an orderly
//! way out when told to leave, and what it tells while it runs.

use crate::workbench::Workbench;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command};

pub(crate) const ASYNCHRONOUS: &str = "--set schedule.kind=asynchronous";

#[test]
fn without_staleness_the_weights_are_those_of_the_synchronous_schedule_to_the_bit() {
    let bench = Workbench::new();
    for (number, more) in [
        "--set ppo.updates=4",
        "--set ppo.updates=3 --set generation.rows=3 --set ppo.epochs=2 --set ppo.minibatches=2",
        "--set ppo.updates=3 --set ppo.micro_batch_tokens=40 --set run.seed=5",
    ]
    .into_iter()
    .enumerate()
    {
        // As many samples as a batch has move λ, and with it the weights.
        let more = format!(
            r#"{more} --set constraints.cost.dual.estimator={{kind="fresh",minimum_effective_samples=4}} --set policy.learning_rate=1e-2"#
        );
        let train = |run: &str, more: &str| bench.train("train", &format!("{run}-{number}"), more);
        let synchronous = train("synchronous", &more);
        let asynchronous = train("asynchronous", &format!("{more} {ASYNCHRONOUS} --set schedule.staleness=0"));
        assert_eq!(synchronous["weights_hash"], asynchronous["weights_hash"], "{more}");
        let lambdas = |run: &str| -> Vec<_> {
            bench.rows(&format!("{run}-{number}/metrics.jsonl")).iter().map(|row| row["lambda"].clone()).collect()
        };
        assert_eq!(lambdas("synchronous"), lambdas("asynchronous"));
    }
}

#[test]
fn with_staleness_every_update_is_made_from_rollouts_that_are_young_enough() {
    let bench = Workbench::new();
    for (run, more) in [
        ("keep", "--set placement.generator.count=2 --set placement.cost.count=2"),
        ("rebuild", "--set schedule.weights=continue_rebuild --set policy.learning_rate=1e-2"),
        ("drain", "--set schedule.weights=drain"),
    ] {
        let staleness = "--set schedule.staleness=1 --set ppo.updates=6 --set generation.rows=3";
        bench.train("train", run, &format!("{ASYNCHRONOUS} {staleness} {more}"));
        let rows = bench.rows(&format!("{run}/metrics.jsonl"));
        assert_eq!(rows.len(), 6, "{run}");
        for row in &rows {
            let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("no {name} in {row}"));
            assert!(number("staleness_versions_max") <= 1.0, "{row}");
            assert!(number("busy_seconds_generator") >= 0.0 && number("idle_seconds_learner") >= 0.0, "{row}");
            assert!(number("edge_depth_join_learner") >= 0.0 && number("cost_mean").is_finite(), "{row}");
            assert_eq!(number("restarts"), 0.0, "{row}");
        }
    }
}

#[test]
fn the_display_tells_multiplier_cost_and_who_waits_for_whom() {
    let bench = Workbench::new();
    let outcome =
        bench.succeed(&format!("train --config recipes/train.toml --run run {ASYNCHRONOUS} --set ppo.updates=6"));
    let last = outcome.stderr.lines().rfind(|line| line.contains("6/6")).expect("the last update is shown");
    for part in
        ["reward_mean ", "cost_mean ", "cost_limit ", "lambda ", "staleness_versions_mean ", "edge_depth_", " ← "]
    {
        assert!(last.contains(part), "{part} is not in {last}");
    }
}

#[test]
fn told_to_leave_it_ends_what_is_under_way_and_saves_its_model() {
    let bench = Workbench::new();
    let more = "--set ppo.updates=1000000 --set telemetry.address=127.0.0.1:0";
    let mut child = bench.start(&format!("train --config recipes/train.toml --run run {ASYNCHRONOUS} {more}"));
    let (address, lines) = address(&mut child);
    assert!(get(&address, "/healthz").starts_with("HTTP/1.1 200 "));
    while bench.read("run/metrics.jsonl").is_empty() {
        std::thread::yield_now();
    }
    let metrics = get(&address, "/metrics");
    for name in ["saddle_policy_version ", "saddle_lambda{", "saddle_edge_capacity{", "saddle_rollouts_total{"] {
        assert!(metrics.contains(name), "{name} is not in {metrics}");
    }
    let status = get(&address, "/v1/status");
    assert!(
        status.contains("\"updates\":1000000") && status.contains("\"so_far\":{\"constraint\":\"cost\""),
        "{status}"
    );
    tell_to_leave(&child);
    let said: Vec<String> = lines.collect();
    assert_eq!(child.wait().expect("the program ends").code(), Some(130), "{said:?}");
    assert!(said.iter().any(|line| line.contains("told to leave after update")), "{said:?}");
    bench.succeed("generate --model run/model --input fixture/world/prompts.valid.jsonl --max-new-tokens 2");
}

#[test]
fn told_twice_it_leaves_at_once_without_a_model() {
    let bench = Workbench::new();
    // Decoded one at a time, what is under way would take minutes to end.
    let more = "--set ppo.batch_rollouts=4096 --set edges.items=8192 --set generation.rows=1 --set telemetry.address=127.0.0.1:0";
    let mut child = bench.start(&format!("train --config recipes/train.toml --run run {ASYNCHRONOUS} {more}"));
    let (_, mut lines) = address(&mut child);
    tell_to_leave(&child);
    // Sent twice, as service managers do, it is one signal.
    tell_to_leave(&child);
    assert!(lines.any(|line| line.contains("a second signal leaves at once")));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    tell_to_leave(&child);
    let said: Vec<String> = lines.collect();
    assert_eq!(child.wait().expect("the program ends").code(), Some(130), "{said:?}");
    assert_eq!(said, Vec::<String>::new());
    assert!(!bench.path("run/model").is_dir(), "a model was saved");
}

/// Where the run says that its telemetry is, and what it says after that.
pub(crate) fn address(child: &mut Child) -> (String, impl Iterator<Item = String> + use<>) {
    let mut lines = BufReader::new(child.stderr.take().expect("standard error is read")).lines().map_while(Result::ok);
    let address = lines.find_map(|line| Some(line.split_once("http://")?.1.split_once('/')?.0.to_owned()));
    (address.expect("the program says where its telemetry is"), lines)
}

pub(crate) fn tell_to_leave(child: &Child) {
    let told = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill is there");
    assert!(told.success());
}

pub(crate) fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").expect("the server reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the server answers");
    answer
}

#[test]
fn a_learner_that_diverges_ends_the_run_with_its_reason() {
    let bench = Workbench::new();
    let rates = "--set policy.learning_rate=1e30 --set critics.learning_rate=1e30 --set ppo.updates=30";
    let outcome = bench.saddle(&format!("train --config recipes/train.toml --run run {ASYNCHRONOUS} {rates}"));
    assert_eq!(outcome.code, 4, "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("saddle: learner-0: the loss or its gradient was not finite"),
        "{}",
        outcome.stderr
    );
    // The newest weights that were published are kept, and said to be those.
    assert!(outcome.stderr.contains("; the policy of update "), "{}", outcome.stderr);
}

#[test]
fn a_stage_that_keeps_failing_ends_the_run_with_its_reason() {
    // Nothing comes within a microsecond: every stage that waits for input fails.
    let impatient = "--set edges.patience_seconds=1e-6 --set edges.response_seconds=9e-7 --set edges.join_seconds=9e-7
        --set edges.flush_seconds=0 --set supervision.heartbeat_seconds=9e-7 --set supervision.restarts=2
        --set supervision.backoff_seconds=0";
    let command = format!("train --config recipes/train.toml --run run {ASYNCHRONOUS} {impatient}");
    let expected = ["failed more than 2 times within 600 s, the last time: "];
    Workbench::new().fail_reading(&command, "", 4, &expected);
}

#[test]
fn a_dry_run_shows_stages_and_edges() {
    let bench = Workbench::new();
    let more = "--set placement.generator.count=3 --set schedule.staleness=2 --dry-run";
    let printed = bench.succeed(&format!("train --config recipes/train.toml {ASYNCHRONOUS} {more}")).stdout;
    for line in
        ["# staleness 2, 24 credits, 8 rollouts an update", "#   3 × generator", "#   join→learner: 256 items, 256 MiB"]
    {
        assert!(printed.lines().any(|each| each == line), "{line} is not in\n{printed}");
    }
    bench.write("printed.toml", &printed);
    assert_eq!(bench.succeed("train --config printed.toml --dry-run").stdout, printed);
}

#[test]
fn what_cannot_run_is_refused_with_all_its_problems() {
    Workbench::new().refuse(
        r#"train --config recipes/train.toml --run run --set schedule.kind=asynchronous --set correction.kind=none
           --set edges.items=0 --set edges.mebibytes=0 --set placement.learner.count=2 --set telemetry.address=0.0.0.0:80
           --set edges.join_seconds=0.01 --set ppo.delay_updates=1 --set edges.patience_seconds=200
           --set telemetry.control_token_file=token --set constraints.cost.dual.estimator={kind="upper"}"#,
        &[
            "correction.kind: \"none\" trains on stale rollouts",
            "edges.items: must be at least 1",
            "edges.mebibytes: must be at least 1",
            "edges.flush_seconds: must be",
            "edges.patience_seconds: must be above supervision.heartbeat_seconds = 300, is 200",
            "edges.patience_seconds: must be above edges.response_seconds = 300, is 200",
            "constraints.cost.dual.estimator.fresh.minimum_effective_samples: must be at most 14.4, is 64",
            "placement.learner.count: must be 1",
            "telemetry.address: must be an address of this machine",
            "ppo.delay_updates: is an experiment of the synchronous schedule",
        ],
    );
}

#[test]
fn throughput_is_measured_against_what_is_possible() {
    let bench = Workbench::new();
    let small = "--generators 1,2 --updates 3 --batch 8 --slots 4 --tokens 4 --step-milliseconds 1";
    let rows = bench.succeed(&format!("bench throughput {small} --json")).json();
    let generators: Vec<_> = rows.as_array().expect("a list").iter().map(|row| row["generators"].as_u64()).collect();
    assert_eq!(generators, [Some(1), Some(2)]);
    assert!(rows[0]["rollouts_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{rows}");
    let scaled = format!("{small} --scorers 1,2 --score-milliseconds 0.1 --staleness 1 --plot throughput.svg");
    let rows = bench.succeed(&format!("bench throughput {scaled} --json")).json();
    let scorers: Vec<_> = rows.as_array().expect("a list").iter().map(|row| row["scorers"].as_u64()).collect();
    assert_eq!(scorers, [Some(1), Some(1), Some(2), Some(2)]);
    let svg = bench.read("throughput.svg");
    assert!(svg.contains("1 scorers a lane, η = 1") && svg.contains("2 scorers a lane, η = 1"), "{svg}");
    bench.refuse("bench throughput --batch 0", &["--batch"]);
    bench.refuse("bench throughput --scorers 0", &["--scorers"]);
}

#[test]
fn stages_that_panic_and_hang_lose_nothing_and_work_again() {
    let bench = Workbench::new();
    let measured = bench.succeed("bench faults --faults 16 --json").json();
    let stages = measured["stages"].as_array().expect("a list");
    let faults = |name: &str| stages.iter().filter_map(|stage| stage[name].as_u64()).sum::<u64>();
    assert_eq!(
        (stages.len(), faults("panics") + faults("hangs"), measured["restarts"].as_u64()),
        (8, 16, Some(16)),
        "{measured}"
    );
    assert_eq!([&measured["rollouts_lost"], &measured["rollouts_trained_on_twice"]], [0, 0], "{measured}");
    let words = bench.succeed("bench faults --faults 8").stdout;
    assert!(words.contains("8 restarts"), "{words}");
    bench.refuse("bench faults --faults 0", &["--faults"]);
}
