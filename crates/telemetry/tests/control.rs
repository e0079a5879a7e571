//! Control requests to a real server, over plain TCP.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use saddle_telemetry::{Command, CommandError, Control, ControlToken, Endpoints, Pause, Scale, Server, Telemetry};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use tokio::runtime::{Builder, Runtime};

const TOKEN: &str = "a token of some length";

/// A server, the commands that it has passed on, and what it lives on.
struct Run {
    address: SocketAddr,
    commands: Arc<Mutex<Vec<Command>>>,
    _runtime: Runtime,
    _server: Server,
}

fn token() -> ControlToken {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, TOKEN.replace(' ', "-")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    ControlToken::read(&path).unwrap()
}

/// Starts a server that takes commands and refuses those to have more than eight of a role; without `controlled` it takes none.
fn start(controlled: bool) -> Run {
    let commands: Arc<Mutex<Vec<Command>>> = Arc::default();
    let heard = Arc::clone(&commands);
    let control = Control {
        token: token(),
        carry_out: Box::new(move |command| {
            let outcome = match &command {
                Command::Scale(Scale { count: 9.., .. }) => Err(CommandError::Refused("eight at most".to_owned())),
                Command::Pause(Pause { role, .. }) if role == "nobody" => Err(CommandError::Gone("over".to_owned())),
                _ => Ok(()),
            };
            heard.lock().unwrap().push(command);
            Box::pin(std::future::ready(outcome))
        }),
    };
    let endpoints = Endpoints {
        telemetry: Arc::new(Telemetry::new("0.1.0").unwrap()),
        status: Box::new(|| Value::Null),
        health: Box::new(|| Ok("ok".to_owned())),
        control: controlled.then_some(control),
    };
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = runtime.block_on(Server::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), endpoints)).unwrap();
    Run { address: server.address(), commands, _runtime: runtime, _server: server }
}

impl Run {
    /// Status and JSON of the answer to `request`, whose head ends with `headers`.
    fn ask(&self, request: &str, headers: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let length = body.len();
        let head = format!("{request} HTTP/1.1\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
        // A body above the limit may be cut off.
        let _ = stream.write_all(format!("{head}{body}").as_bytes());
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap())
    }

    /// What a request with the right headers comes to: its status, and why it was refused.
    fn post(&self, path: &str, body: &str) -> (u16, String) {
        let headers = format!("host: 127.0.0.1:9464\r\nauthorization: Bearer {}\r\n", TOKEN.replace(' ', "-"));
        let (status, answer) = self.ask(&format!("POST {path}"), &headers, body);
        (status, answer["error"].as_str().unwrap_or_default().to_owned())
    }
}

#[test]
fn commands_of_those_who_know_the_token_are_carried_out() {
    let run = start(true);
    let role = || "generator".to_owned();
    for (path, body, command) in [
        ("/v1/scale", json!({ "role": "generator", "count": 3 }), Command::Scale(Scale { role: role(), count: 3 })),
        (
            "/v1/pause",
            json!({ "role": "generator", "paused": true }),
            Command::Pause(Pause { role: role(), paused: true }),
        ),
        ("/v1/drain", json!({}), Command::Drain),
    ] {
        assert_eq!(run.post(path, &body.to_string()), (200, String::new()));
        assert_eq!(run.commands.lock().unwrap().pop(), Some(command));
    }
}

#[test]
fn bodies_that_are_wrong_or_too_long_and_commands_that_cannot_be_are_refused_with_the_reason() {
    let run = start(true);
    for (path, body, status, reason) in [
        ("/v1/scale", r#"{"role": "generator"}"#.to_owned(), 400, "missing field `count`"),
        ("/v1/scale", r#"{"role": "generator", "count": -1}"#.to_owned(), 400, "invalid value"),
        ("/v1/scale", r#"{"role": "generator", "count": 1, "more": 1}"#.to_owned(), 400, "unknown field `more`"),
        ("/v1/pause", String::new(), 400, "EOF"),
        ("/v1/scale", " ".repeat(4097), 413, "at most 4096 bytes"),
    ] {
        let (found, said) = run.post(path, &body);
        assert!(found == status && said.contains(reason), "{body}: {found} {said}");
    }
    assert!(run.commands.lock().unwrap().is_empty());
    assert_eq!(run.post("/v1/scale", r#"{"role": "generator", "count": 9}"#), (400, "eight at most".to_owned()));
    assert_eq!(run.post("/v1/pause", r#"{"role": "nobody", "paused": true}"#), (503, "over".to_owned()));
}

#[test]
fn strangers_and_web_pages_and_other_methods_are_refused_before_their_body_is_read() {
    let run = start(true);
    let token = TOKEN.replace(' ', "-");
    let host = "host: localhost:9464\r\n";
    let known = format!("authorization: Bearer {token}\r\n");
    for (request, headers, status) in [
        ("POST /v1/drain", host.to_owned(), 401),
        ("POST /v1/drain", format!("{host}authorization: Bearer {token}x\r\n"), 401),
        ("POST /v1/drain", format!("{host}authorization: {token}\r\n"), 401),
        ("POST /v1/drain", format!("host: rebound.example:9464\r\n{known}"), 403),
        ("POST /v1/drain", format!("host: 127.0.0.1.example\r\n{known}"), 403),
        ("POST /v1/drain", known.clone(), 403),
        ("POST /v1/drain", format!("{host}origin: http://localhost:9464\r\n{known}"), 403),
        ("GET /v1/drain", format!("{host}{known}"), 405),
        ("PUT /v1/scale", format!("{host}{known}"), 405),
    ] {
        let (found, answer) = run.ask(request, &headers, "");
        assert_eq!(found, status, "{request} {headers}: {answer}");
        assert!(answer["error"].is_string() && !answer.to_string().contains(&token), "{answer}");
    }
    assert!(run.commands.lock().unwrap().is_empty());
    assert_eq!(run.ask("POST /v1/drain", &format!("host: [::1]:9464\r\n{known}"), "").0, 200);
}

#[test]
fn without_a_token_control_requests_are_refused_with_the_remedy() {
    let (status, reason) = start(false).post("/v1/drain", "{}");
    assert_eq!(status, 403);
    assert!(reason.contains("telemetry.control_token_file"), "{reason}");
}
