//! The server of a run: `/metrics` for Prometheus, `/healthz` for a supervisor, `/v1/status` for people and scripts, and
//! control requests for those who have the token.
//!
//! What is only read needs no authentication; it is meant for the loopback interface, where it listens by default, and where a
//! request for another host is refused: it comes from a web page. Everything about a connection is limited: how long its
//! headers may be and take to come, how long it lives, and how many there are. A new one takes the place of the oldest, so
//! that clients that say nothing never keep Prometheus out.

use crate::{Control, Telemetry, TelemetryError, control, host};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware::from_fn;
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::VecDeque;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

/// Where the server listens unless it is told otherwise.
pub const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

/// Most bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;
/// Between attempts to accept, when the process has too many files open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a client may take of the server.
#[derive(Clone, Copy)]
struct Limits {
    /// Connections at a time; one more takes the place of the oldest.
    connections: usize,
    /// For the whole head of a request to come, and between requests.
    head_patience: Duration,
    /// After this a connection takes no more requests.
    connection_life: Duration,
    /// For an answer to be read, once a connection ends or the server stops.
    grace: Duration,
}

const LIMITS: Limits = Limits {
    connections: 32,
    head_patience: Duration::from_secs(5),
    connection_life: Duration::from_secs(60),
    grace: Duration::from_secs(5),
};

/// What the server gives out. The closures are called for each request and must not block.
pub struct Endpoints {
    /// The metrics.
    pub telemetry: Arc<Telemetry>,
    /// `/v1/status`.
    pub status: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// `/healthz`: how the run is, in a word, or what is wrong, in a sentence.
    pub health: Box<dyn Fn() -> Result<String, String> + Send + Sync>,
    /// Control requests; without it they are refused.
    pub control: Option<Control>,
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Endpoints").finish_non_exhaustive()
    }
}

/// A server that runs as a task, and does the upkeep of its telemetry. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Server {
    /// Starts listening, on the tokio runtime that it is called from, which needs its I/O and time drivers.
    ///
    /// # Errors
    /// [`TelemetryError::Listen`] if the address cannot be had.
    pub async fn start(address: SocketAddr, endpoints: Endpoints) -> Result<Self, TelemetryError> {
        Self::start_within(LIMITS, address, endpoints).await
    }

    async fn start_within(limits: Limits, address: SocketAddr, endpoints: Endpoints) -> Result<Self, TelemetryError> {
        let refused = |source| TelemetryError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(serve(listener, limits, Arc::new(endpoints), stopped));
        Ok(Self { address, stop, task })
    }

    /// Where it listens; the port is the real one if 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more requests, lets the answers under way be read, and ends, within seconds.
    pub async fn stop(self) {
        // The task may have ended already.
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}

async fn serve(listener: TcpListener, limits: Limits, endpoints: Arc<Endpoints>, mut stopped: watch::Receiver<bool>) {
    let is_loopback = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    let reading =
        Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).route("/v1/status", get(status));
    let reading = if is_loopback { reading.layer(from_fn(host::require_loopback)) } else { reading };
    let router = reading.merge(control::routes()).with_state(Arc::clone(&endpoints));
    let mut connections = JoinSet::new();
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    let mut upkeep = pin!(endpoints.telemetry.upkeep());
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            () = &mut upkeep => {}
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    open.retain(|connection| !connection.is_finished());
                    if open.len() >= limits.connections
                        && let Some(oldest) = open.pop_front()
                    {
                        oldest.abort();
                    }
                    open.push_back(connections.spawn(converse(stream, limits, router.clone(), stopped.clone())));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
    drop(listener);
    // Each connection has its own grace period; none outlives this.
    while connections.join_next().await.is_some() {}
}

/// Serves one connection to its end.
async fn converse(stream: TcpStream, limits: Limits, router: Router, mut stopped: watch::Receiver<bool>) {
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_patience)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
    );
    // A client that breaks off, or sends what is no request, is its own business.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopped.wait_for(|&stop| stop) => {}
        () = tokio::time::sleep(limits.connection_life) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(limits.grace, connection).await;
}

async fn metrics(State(endpoints): State<Arc<Endpoints>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], endpoints.telemetry.render())
}

async fn status(State(endpoints): State<Arc<Endpoints>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], (endpoints.status)().to_string())
}

async fn healthz(State(endpoints): State<Arc<Endpoints>>) -> impl IntoResponse {
    match (endpoints.health)() {
        Ok(state) => (StatusCode::OK, format!("{state}\n")),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn send(address: SocketAddr, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    async fn read(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        // A reset is an end too.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    /// Clients that take every place and do not go by themselves; then one that asks.
    fn check(limits: Limits, request: &str, served: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let talk = async {
            let telemetry = Arc::new(Telemetry::new("0.1.0").unwrap());
            let endpoints = Endpoints {
                telemetry,
                status: Box::new(|| serde_json::Value::Null),
                health: Box::new(|| Ok("ok".to_owned())),
                control: None,
            };
            let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let server = Server::start_within(limits, any_port, endpoints).await.unwrap();
            let mut idle = Vec::new();
            for _ in 0..limits.connections {
                idle.push(send(server.address(), request).await);
            }
            let asking = send(server.address(), "GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n").await;
            assert!(read(asking).await.starts_with("HTTP/1.1 200 "));
            for stream in idle {
                assert_eq!(read(stream).await.starts_with("HTTP/1.1 200 "), served);
            }
            server.stop().await;
        };
        let in_time = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), talk).await });
        assert!(in_time.is_ok(), "the idle clients were never cut off");
    }

    #[test]
    fn clients_that_send_half_a_head_are_cut_off_and_free_their_places() {
        let limits = Limits { connections: 3, head_patience: Duration::from_millis(20), ..LIMITS };
        check(limits, "GET /healthz HTTP/1.1\r\n", false);
    }

    #[test]
    fn clients_that_stay_after_their_answer_are_cut_off_and_free_their_places() {
        let limits = Limits { connections: 3, connection_life: Duration::from_millis(500), ..LIMITS };
        check(limits, "GET /healthz HTTP/1.1\r\n\r\n", true);
    }
}
