//! What the program sets for itself, whatever starts it.

use crate::workbench::{PROGRAM, Workbench};
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn the_threads_settings_are_there_without_make_and_whoever_sets_one_has_the_last_word() {
    let bench = Workbench::new();
    let model = bench.path("fixture/sft/model");
    let mut command = Command::new(PROGRAM);
    command.args(["generate", "--model"]).arg(model).env_clear().env("GOMP_SPINCOUNT", "7");
    // It waits for prompts.
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the program starts");
    let environment = || fs::read(format!("/proc/{}/environ", child.id())).unwrap_or_default();
    let has = |setting: &str| environment().split(|byte| *byte == 0).any(|each| each == setting.as_bytes());
    let start = Instant::now();
    while !has("OMP_WAIT_POLICY=passive") {
        assert!(start.elapsed() < DEADLINE, "{:?}", String::from_utf8_lossy(&environment()));
        std::thread::yield_now();
    }
    assert!(has("GOMP_SPINCOUNT=7") && has("MALLOC_TRIM_THRESHOLD_=68719476736"));
    drop(child.stdin.take());
    assert!(child.wait().expect("the program ends").success());
}
