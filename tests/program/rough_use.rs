//! Rough use: signals at any time, frozen processes, readers that leave, directories that are in use, prompts that cannot be answered. Nothing
//! that was learnt is lost, and the reason is said.

use crate::asynchronous::{ASYNCHRONOUS, address, get, tell_to_leave};
use crate::control::{SERVED, TOKEN, post, write_token};
use crate::workbench::{PROGRAM, Workbench};
use serde_json::json;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

const TRAIN: &str = "train --config recipes/train.toml --run run";
const SFT: &str = "sft --config recipes/sft.toml --run run";

/// What a shell pipeline that begins with the program came to: its exit code and what it printed.
fn pipeline(bench: &Workbench, command: &str, rest: &str) -> (Option<i32>, String) {
    let line = format!("{PROGRAM} {command} {rest}; exit ${{PIPESTATUS[0]}}");
    let output = Command::new("bash").args(["-c", &line]).current_dir(bench.path(".")).output().expect("bash is there");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn signal(name: &str, process: u32) {
    let sent = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().expect("kill is there");
    assert!(sent.success());
}

/// Waits until the run has told of an update.
fn wait_for_metrics(bench: &Workbench) {
    while std::fs::read(bench.path("run/metrics.jsonl")).unwrap_or_default().is_empty() {
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn overwriting_keeps_the_earlier_run_until_there_is_another() {
    let bench = Workbench::new();
    bench.train("sft", "run", "");
    let before = bench.read("run/config.toml");
    let typo = "--overwrite --set data.train=[{path=\"typo.jsonl\",format=\"alpaca\"}]";
    let outcome = bench.saddle(&format!("{SFT} {typo}"));
    assert_eq!(outcome.code, 2, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("typo.jsonl"), "{}", outcome.stderr);
    let own = bench.saddle(&format!("{SFT} --overwrite --set model={{from=\"run/model\"}}"));
    assert_eq!(own.code, 2, "{}", own.stderr);
    assert!(own.stderr.contains("model.from = \"run/model\" lies in the run's own directory run"), "{}", own.stderr);
    assert_eq!(bench.read("run/config.toml"), before);
    assert!(bench.path("run/model/model.safetensors").is_file() && !bench.path("run/replaced").is_dir());
    bench.train("sft", "run", "--overwrite --set run.seed=7");
    assert!(bench.read("run/config.toml").contains("seed = 7") && !bench.path("run/replaced").is_dir());
}

#[test]
fn a_run_that_another_process_writes_is_refused() {
    let bench = Workbench::new();
    let mut child = bench.start(&format!("{TRAIN} {ASYNCHRONOUS} --set ppo.updates=1000000"));
    wait_for_metrics(&bench);
    let outcome = bench.saddle(&format!("{TRAIN} --overwrite"));
    assert_eq!(outcome.code, 2, "{}", outcome.stderr);
    assert!(outcome.stderr.contains(&format!("is being written by process {}", child.id())), "{}", outcome.stderr);
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    bench.train("train", "run", "--overwrite");
}

#[test]
fn every_stage_and_schedule_that_is_told_to_leave_saves_what_it_has_learnt() {
    let steps = "--set optimizer.max_steps=1000000 --set optimizer.epochs=1000000";
    for command in [
        format!("{SFT} {steps}"),
        format!("cost-model --config recipes/score-model.toml --run run {steps}"),
        format!("{TRAIN} --set ppo.updates=1000000"),
    ] {
        let bench = Workbench::new();
        let mut child = bench.start(&command);
        wait_for_metrics(&bench);
        tell_to_leave(&child);
        let said = std::io::read_to_string(child.stderr.take().expect("standard error is read")).unwrap_or_default();
        assert_eq!(child.wait().expect("the program ends").code(), Some(130), "{command}: {said}");
        assert!(said.contains("told to leave after ") && bench.path("run/model").is_dir(), "{command}: {said}");
    }
}

#[test]
fn a_process_that_is_stopped_for_longer_than_the_heartbeat_goes_on_as_if_nothing_were() {
    let bench = Workbench::new();
    let patience = "--set supervision.heartbeat_seconds=1 --set edges.patience_seconds=4 --set edges.response_seconds=3
        --set edges.join_seconds=3";
    let mut child = bench.start(&format!("{TRAIN} {ASYNCHRONOUS} {patience} --set ppo.updates=60"));
    wait_for_metrics(&bench);
    signal("STOP", child.id());
    sleep(Duration::from_secs(6));
    signal("CONT", child.id());
    let said = std::io::read_to_string(child.stderr.take().expect("standard error is read")).unwrap_or_default();
    assert_eq!(child.wait().expect("the program ends").code(), Some(0), "{said}");
    let rows = bench.rows("run/metrics.jsonl");
    assert_eq!((rows.len(), rows[59]["restarts"].as_f64()), (60, Some(0.0)), "{said}");
}

#[test]
fn a_reader_that_leaves_ends_no_run() {
    let bench = Workbench::new();
    let (code, _) = pipeline(&bench, &format!("{TRAIN} {ASYNCHRONOUS} --set ppo.updates=6"), "2>&1 | head -1");
    assert!(code == Some(0) && bench.path("run/model").is_dir(), "{code:?}");
    for command in [format!("{TRAIN} --dry-run"), "config-reference".to_owned(), "--help".to_owned()] {
        let (code, printed) = pipeline(&bench, &command, "2>&1 | head -1");
        assert!(code == Some(0) && !printed.contains("panicked"), "{command}: {code:?} {printed}");
    }
}

#[test]
fn prompts_that_leave_no_room_end_the_run_with_the_reason() {
    let bench = Workbench::new();
    bench.write("long.jsonl", format!("{{\"prompt\":\"{}\"}}\n", "how do i brew coffee ".repeat(40)).repeat(20));
    let long = "--set prompts.train=[{path=\"long.jsonl\",format=\"prompts\"}] --set prompts.max_tokens=256";
    for kind in ["asynchronous", "synchronous"] {
        let outcome =
            bench.saddle(&format!("{TRAIN} {long} --set schedule.kind={kind} --set evaluation.held_out_ratio=0"));
        assert_eq!(outcome.code, 2, "{kind}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("prompts: no prompt is left to use"), "{kind}: {}", outcome.stderr);
    }
}

#[test]
fn a_drain_lifts_pauses_and_says_that_it_drains() {
    let bench = Workbench::new();
    write_token(&bench, 0o600);
    let mut child = bench.start(&format!("{TRAIN} {ASYNCHRONOUS} {SERVED} --set ppo.updates=1000000"));
    let (address, lines) = address(&mut child);
    wait_for_metrics(&bench);
    let (status, answer) = post(&address, "/v1/pause", TOKEN, &json!({ "role": "cost", "paused": true }));
    assert_eq!(status, 200, "{answer}");
    while !get(&address, "/v1/status").contains("\"state\":\"paused\"") {
        sleep(Duration::from_millis(5));
    }
    let paused = "saddle_actor_state{role=\"cost\",index=\"0\",state=\"paused\"} 1";
    while !get(&address, "/metrics").contains(paused) {
        sleep(Duration::from_millis(5));
    }
    tell_to_leave(&child);
    let said: Vec<String> = lines.collect();
    assert_eq!(child.wait().expect("the program ends").code(), Some(130), "{said:?}");
}
