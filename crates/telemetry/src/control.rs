//! Control requests to a run under way: `POST /v1/scale`, `/v1/pause` and `/v1/drain`, with a JSON body and a bearer token.
//!
//! They are refused unless the server was given a token. A page in a browser cannot make one: the `Host` has to be this machine
//! under its own name, and nothing that has an `Origin` is heard. A body is bounded in size and in the time that it takes to
//! come; every answer is JSON, and one that is no success says why and what would be.

use crate::host;
use crate::server::Endpoints;
use crate::token::ControlToken;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Most bytes of a body.
const BODY_BYTES: usize = 4096;
/// For a body to come.
const BODY_PATIENCE: Duration = Duration::from_secs(5);
/// For a command to be carried out: new stages may have to load their models.
const COMMAND_PATIENCE: Duration = Duration::from_secs(130);

/// What may be asked of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Have so many stages of a role.
    Scale(Scale),
    /// Let the stages of a role stand still, or go on.
    Pause(Pause),
    /// Draw no new prompt, end what is under way, save the model and leave.
    Drain,
}

/// `{"role": "generator", "count": 3}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Name of the role, as in `/v1/status` without its number.
    pub role: String,
    /// How many stages.
    pub count: usize,
}

/// `{"role": "generator", "paused": true}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// Name of the role.
    pub role: String,
    /// Whether to stand still.
    pub paused: bool,
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// It asks for what cannot be.
    #[error("{0}")]
    Refused(String),
    /// There is nobody to carry it out: the run ends.
    #[error("{0}")]
    Gone(String),
}

/// Carries a command out. It must not block.
pub type CarryOut =
    Box<dyn Fn(Command) -> Pin<Box<dyn Future<Output = Result<(), CommandError>> + Send>> + Send + Sync>;

/// Who may give commands, and who carries them out.
pub struct Control {
    /// What the caller must know.
    pub token: ControlToken,
    /// What is done then.
    pub carry_out: CarryOut,
}

impl fmt::Debug for Control {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Control").finish_non_exhaustive()
    }
}

/// The control requests. Of other methods they say that there is POST.
pub(crate) fn routes() -> Router<Arc<Endpoints>> {
    let only_post = || async { Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "control requests are POST requests") };
    Router::new()
        .route(
            "/v1/scale",
            post(|state, request| obey(state, request, |body| read(body).map(Command::Scale))).fallback(only_post),
        )
        .route(
            "/v1/pause",
            post(|state, request| obey(state, request, |body| read(body).map(Command::Pause))).fallback(only_post),
        )
        .route("/v1/drain", post(|state, request| obey(state, request, |_| Ok(Command::Drain))).fallback(only_post))
}

fn read<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("the body: {error}")))
}

type Read = fn(&[u8]) -> Result<Command, Refusal>;

async fn obey(State(endpoints): State<Arc<Endpoints>>, request: Request, read: Read) -> Result<Json<Value>, Refusal> {
    require_from_this_machine(request.headers())?;
    let Some(control) = &endpoints.control else {
        let remedy = "this run takes no control requests: name a file with a token in telemetry.control_token_file";
        return Err(Refusal::new(StatusCode::FORBIDDEN, remedy));
    };
    let given =
        request.headers().get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if !given.is_some_and(|given| control.token.is(given)) {
        let remedy = "authorization must be \"Bearer TOKEN\", with the token in the file that telemetry.control_token_file names";
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, remedy));
    }
    let late = |_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
    let body = timeout(BODY_PATIENCE, to_bytes(request.into_body(), BODY_BYTES)).await.map_err(late)?;
    let long = |_| Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {BODY_BYTES} bytes"));
    let command = read(&body.map_err(long)?)?;
    let late = |_| Refusal::new(StatusCode::GATEWAY_TIMEOUT, "the run does not answer; see /v1/status");
    timeout(COMMAND_PATIENCE, (control.carry_out)(command.clone())).await.map_err(late)??;
    Ok(Json(json!({ "done": command })))
}

/// Another site's page may reach this port through a name of its own that leads here, or send what needs no permission.
fn require_from_this_machine(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(header::ORIGIN) || !host::is_loopback(headers) {
        let reason = "control requests come from this machine and from no web page: use 127.0.0.1 or localhost";
        return Err(Refusal::new(StatusCode::FORBIDDEN, reason));
    }
    Ok(())
}

/// A request that was not followed.
struct Refusal {
    status: StatusCode,
    reason: String,
}

impl Refusal {
    fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into() }
    }
}

impl From<CommandError> for Refusal {
    fn from(error: CommandError) -> Self {
        let status = match error {
            CommandError::Refused(_) => StatusCode::BAD_REQUEST,
            CommandError::Gone(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.reason }))).into_response()
    }
}
