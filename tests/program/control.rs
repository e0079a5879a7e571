//! Control requests to a run of `saddle train`, through its own port: stages come and go, stand still and go on, and no prompt
//! is lost; what is wrong is refused, and the token is seen nowhere.

use crate::asynchronous::{ASYNCHRONOUS, address, get};
use crate::workbench::Workbench;
use serde_json::{Value, json};
use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";
pub(crate) const SERVED: &str = "--set telemetry.address=127.0.0.1:0 --set telemetry.control_token_file=token";

pub(crate) fn write_token(bench: &Workbench, mode: u32) {
    bench.write("token", format!("{TOKEN}\n"));
    std::fs::set_permissions(bench.path("token"), Permissions::from_mode(mode)).expect("the mode can be set");
}

/// Status code and JSON of the answer to a control request.
pub(crate) fn post(address: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let body = body.to_string();
    let headers = format!("host: {address}\r\nauthorization: Bearer {token}\r\ncontent-length: {}", body.len());
    write!(stream, "POST {path} HTTP/1.1\r\n{headers}\r\nconnection: close\r\n\r\n{body}").expect("the server reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the server answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    (head[9..12].parse().expect("a status is a number"), serde_json::from_str(body).expect("the body is JSON"))
}

/// Looks at the status until it is as wanted. Every prompt is under way or has ended, at every look.
fn wait(address: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
    loop {
        let answer = get(address, "/v1/status");
        let (_, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
        let status: Value = serde_json::from_str(body).expect("the status is JSON");
        let run = &status["run"];
        if let Some(drawn) = run["prompts_drawn"].as_u64() {
            let ended =
                run["prompts_ended"].as_object().expect("outcomes").values().filter_map(Value::as_u64).sum::<u64>();
            assert_eq!(run["prompts_open"].as_u64(), Some(drawn - ended), "{run}");
            assert_eq!(run["failures"], json!([]), "{run}");
            if wanted(run) {
                return run.clone();
            }
        }
        std::thread::yield_now();
    }
}

/// Names of the stages of a role that run, and what they do.
fn stages(run: &Value, role: &str) -> Vec<(String, String)> {
    let all = run["stages"].as_array().expect("stages").iter().filter(|stage| stage["running"] == true);
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let named = all.map(|stage| (text(&stage["stage"]), text(&stage["activity"])));
    named.filter(|(name, _)| name.rsplit_once('-').is_some_and(|(each, _)| each == role)).collect()
}

#[test]
fn generators_come_and_go_and_a_learner_stands_still_without_a_prompt_lost() {
    let bench = Workbench::new();
    write_token(&bench, 0o600);
    let more = "--set ppo.updates=1000000 --set generation.rows=3";
    let mut child = bench.start(&format!("train --config recipes/train.toml --run run {ASYNCHRONOUS} {SERVED} {more}"));
    let (address, lines) = address(&mut child);
    let order = |path: &str, body: Value| {
        let (status, answer) = post(&address, path, TOKEN, &body);
        assert_eq!(status, 200, "{answer}");
    };
    let mut version = 0;
    for (role, count) in [("generator", 3), ("reward", 2), ("generator", 1), ("reward", 1)] {
        order("/v1/scale", json!({ "role": role, "count": count }));
        wait(&address, |run| stages(run, role).len() == count);
        // And it goes on.
        let before = version;
        wait(&address, |run| {
            version = run["version"].as_u64().expect("a version");
            version >= before + 2
        });
    }
    order("/v1/pause", json!({ "role": "learner", "paused": true }));
    let still = wait(&address, |run| stages(run, "learner")[0].1 == "sync" && run["credits_available"] == 0);
    order("/v1/pause", json!({ "role": "learner", "paused": false }));
    wait(&address, |run| run["version"].as_u64() > still["version"].as_u64());

    for (body, token, status, reason) in [
        (json!({ "role": "nobody", "count": 1 }), TOKEN, 400, "there is no role \"nobody\"; there are source"),
        (json!({ "role": "generator", "count": 0 }), TOKEN, 400, "must be in 1..=256, is 0"),
        (json!({ "role": "generator", "count": 257 }), TOKEN, 400, "must be in 1..=256, is 257"),
        (json!({ "role": "learner", "count": 2 }), TOKEN, 400, "there is one learner only"),
        (json!({ "role": "generator", "count": 2 }), &TOKEN[1..], 401, "telemetry.control_token_file"),
    ] {
        let (found, answer) = post(&address, "/v1/scale", token, &body);
        assert!(
            found == status && answer["error"].as_str().is_some_and(|said| said.contains(reason)),
            "{body}: {answer}"
        );
    }

    order("/v1/drain", json!({}));
    let said: Vec<String> = lines.collect();
    assert_eq!(child.wait().expect("the program ends").code(), Some(130), "{said:?}");
    assert!(said.iter().any(|line| line.contains("told to leave after update")), "{said:?}");
    let rows = bench.rows("run/metrics.jsonl");
    let last = rows.last().expect("there were updates");
    for nothing in ["rollouts_dropped_stale", "rollouts_quarantined", "restarts"] {
        assert_eq!(last[nothing], 0.0, "{last}");
    }
    assert!(!said.concat().contains(TOKEN), "the token was said");
    assert_nowhere(TOKEN, &bench.path("run"));
}

fn assert_nowhere(text: &str, folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("the run can be listed") {
        let path = entry.expect("the run can be listed").path();
        if path.is_dir() {
            assert_nowhere(text, &path);
        } else {
            let bytes = std::fs::read(&path).expect("a file of the run can be read");
            let found = bytes.windows(text.len()).any(|window| window == text.as_bytes());
            assert!(!found, "{} tells the token", path.display());
        }
    }
}

#[test]
fn a_token_that_everybody_may_read_is_refused_before_anything_starts() {
    let bench = Workbench::new();
    write_token(&bench, 0o644);
    let command = format!("train --config recipes/train.toml --run run {ASYNCHRONOUS} {SERVED}");
    bench
        .refuse(&command, &["telemetry.control_token_file: token: is open to everybody on this machine; chmod 600 it"]);
}
