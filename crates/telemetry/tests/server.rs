//! A real server on a port of its own, asked over plain TCP.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use saddle_telemetry::{Endpoints, Server, Telemetry, TelemetryError, catalogue};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

struct Run {
    telemetry: Arc<Telemetry>,
    healthy: Arc<AtomicBool>,
    server: Server,
}

impl Run {
    async fn start() -> Self {
        let telemetry = Arc::new(Telemetry::new("0.1.0").unwrap());
        let healthy = Arc::new(AtomicBool::new(true));
        let health = Arc::clone(&healthy);
        let endpoints = Endpoints {
            telemetry: Arc::clone(&telemetry),
            status: Box::new(|| json!({ "version": 3, "phase": "training" })),
            health: Box::new(move || {
                if health.load(Ordering::Relaxed) { Ok("ok".to_owned()) } else { Err("gen-0 has no pulse".to_owned()) }
            }),
            control: None,
        };
        Self { telemetry, healthy, server: Server::start(ANY_PORT, endpoints).await.unwrap() }
    }

    async fn ask(&self, method: &str, path: &str) -> String {
        talk(
            self.server.address(),
            &format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"),
        )
        .await
    }
}

/// Sends the text and reads until the server closes.
async fn talk(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is a close too.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn metrics_are_given_out_as_prometheus_reads_them() {
    runtime().block_on(async {
        let run = Run::start().await;
        catalogue::POLICY_VERSION.of(&run.telemetry, []).set(12.0);
        let answer = run.ask("GET", "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
        assert!(answer.contains("\nsaddle_policy_version 12\n"), "{answer}");
        run.server.stop().await;
    });
}

#[test]
fn status_is_json_and_health_tells_the_reason() {
    runtime().block_on(async {
        let run = Run::start().await;
        let status = run.ask("GET", "/v1/status").await;
        let (_, body) = status.split_once("\r\n\r\n").unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["version"], 3);

        assert!(run.ask("GET", "/healthz").await.starts_with("HTTP/1.1 200 "));
        run.healthy.store(false, Ordering::Relaxed);
        let sick = run.ask("GET", "/healthz").await;
        assert!(sick.starts_with("HTTP/1.1 503 ") && sick.ends_with("gen-0 has no pulse\n"), "{sick}");
        run.server.stop().await;
    });
}

#[test]
fn other_paths_methods_and_heads_above_the_limit_are_refused() {
    runtime().block_on(async {
        let run = Run::start().await;
        assert!(run.ask("GET", "/").await.starts_with("HTTP/1.1 404 "));
        assert!(run.ask("POST", "/metrics").await.starts_with("HTTP/1.1 405 "));
        let other = "GET /v1/status HTTP/1.1\r\nhost: example.com\r\nconnection: close\r\n\r\n";
        assert!(talk(run.server.address(), other).await.starts_with("HTTP/1.1 403 "));
        let head =
            |bytes: usize| format!("GET /healthz HTTP/1.1\r\nconnection: close\r\nx: {}\r\n\r\n", "y".repeat(bytes));
        assert!(talk(run.server.address(), &head(8_000)).await.starts_with("HTTP/1.1 200 "));
        assert!(talk(run.server.address(), &head(20_000)).await.starts_with("HTTP/1.1 431 "));
        run.server.stop().await;
    });
}

#[test]
fn a_stopped_server_is_gone_and_idle_connections_do_not_hold_it() {
    runtime().block_on(async {
        let run = Run::start().await;
        let address = run.server.address();
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        idle.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        run.server.stop().await;
        assert!(TcpStream::connect(address).await.is_err());
    });
}

#[test]
fn an_address_that_is_taken_is_an_error_with_a_remedy() {
    runtime().block_on(async {
        let run = Run::start().await;
        let telemetry = Arc::clone(&run.telemetry);
        let endpoints = Endpoints {
            telemetry,
            status: Box::new(|| json!({})),
            health: Box::new(|| Ok("ok".to_owned())),
            control: None,
        };
        let error = Server::start(run.server.address(), endpoints).await.unwrap_err();
        assert!(matches!(error, TelemetryError::Listen { .. }));
        assert!(error.to_string().ends_with("choose another port, or 0 for any"), "{error}");
        run.server.stop().await;
    });
}
