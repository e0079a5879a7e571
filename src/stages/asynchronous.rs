//! `saddle train` with the asynchronous schedule: follows a run of the actor system, writes its metrics, serves its
//! telemetry, and leaves in order when asked.

use super::waits::{Spent, spent, waits};
use super::watched::Watched;
use crate::failure::Failure;
use saddle_actors::model::ModelEngines;
use saddle_actors::{Event, OrderError, Plan, Remote, Report, StageState, StartError, System, Update};
use saddle_core::PolicyVersion;
use saddle_flow::{Outcome, lock};
use saddle_lm::{LmError, Policy};
use saddle_telemetry::{Command, CommandError, Control, ControlToken, Endpoints, Pause, Scale, Server, Telemetry};
use saddle_training::config::TrainConfig;
use saddle_training::{BatchMetrics, Dual, Named, Observer, TrainingError};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Between two looks at the signals.
const LOOK: Duration = Duration::from_millis(200);
/// For stages to leave, once the run is over.
const LEAVE: Duration = Duration::from_secs(60);

/// What a training run came to.
pub(super) struct Trained {
    pub(super) version: PolicyVersion,
    pub(super) policy: Policy,
    /// Why it ended early, unless it was told to leave. The policy is the newest there is.
    pub(super) failure: Option<Failure>,
}

/// Trains over `engines` until the run has made its updates, is told to leave, or fails.
pub(super) fn train_asynchronously(
    config: &TrainConfig,
    engines: ModelEngines,
    token: Option<ControlToken>,
    telemetry: Arc<Telemetry>,
    observer: &mut Watched<'_>,
) -> Result<Trained, Failure> {
    let system = System::start(Plan::from(config), engines, Dual::all(config), Arc::clone(&telemetry));
    let system = system.map_err(|error| match error {
        StartError::Engine(error) => Failure::run(error),
        StartError::Control(message) => Failure::Environment(message),
    })?;
    // Whatever ends the run, what it has learnt is kept (LEAVE-1).
    let followed = catch_unwind(AssertUnwindSafe(|| follow(config, &system, telemetry, token, observer)));
    let followed =
        followed.unwrap_or_else(|_| Err(Failure::run("a bug ended the run; please report the message above")));
    let remains = system.finish(LEAVE);
    let counts = remains.counts;
    for outcome in [Outcome::DroppedStale, Outcome::Failed, Outcome::Quarantined] {
        if counts.ended(outcome) > 0 {
            observer.note(&format!("{} rollouts ended as {}", counts.ended(outcome), outcome.label()));
        }
    }
    let published = || remains.weights.value.take_view();
    let (version, policy) = match &remains.learner {
        Some(learner) => (learner.version(), learner.policy().snapshot()),
        None => (remains.weights.version, published()),
    };
    let policy = policy.map_err(|error: LmError| Failure::from(TrainingError::from(error)))?;
    Ok(Trained { version, policy, failure: followed.err() })
}

/// Follows the run to its end.
fn follow(
    config: &TrainConfig,
    system: &System<ModelEngines>,
    telemetry: Arc<Telemetry>,
    token: Option<ControlToken>,
    observer: &mut Watched<'_>,
) -> Result<(), Failure> {
    let status = Arc::new(Mutex::new(Status::default()));
    let server = serve(config, system, telemetry, token, &status, observer)?;
    let mut accounts = Accounts::default();
    let mut told = false;
    let outcome = loop {
        if observer.is_told_to_leave() {
            system.drain();
        }
        if system.is_draining() && !told {
            told = true;
            observer.leave();
            observer.note("told to leave: what is under way is ended; a second signal leaves at once");
        }
        match system.next(LOOK) {
            Event::Updated(update) => {
                let metrics = accounts.row(system, &update, observer);
                observer.step(update.version.0, config.ppo.updates, &metrics);
            }
            Event::Nothing => {}
            Event::Over => break Ok(()),
            Event::Stopped(reason) => break Err(Failure::run(reason)),
        }
        *lock(&status) = Status::of(system, observer.status());
    };
    if let Some(server) = server {
        system.handle().block_on(server.stop());
    }
    outcome
}

/// Starts the server if there is to be one; else keeps the memory of the metrics bounded.
fn serve(
    config: &TrainConfig,
    system: &System<ModelEngines>,
    telemetry: Arc<Telemetry>,
    token: Option<ControlToken>,
    status: &Arc<Mutex<Status>>,
    observer: &mut dyn Observer,
) -> Result<Option<Server>, Failure> {
    let Some(address) = &config.telemetry.address else {
        system.handle().spawn(async move { telemetry.upkeep().await });
        return Ok(None);
    };
    let address: SocketAddr = address.parse().map_err(|error| Failure::usage(format!("telemetry.address: {error}")))?;
    let (shown, asked, updates) = (Arc::clone(status), Arc::clone(status), config.ppo.updates);
    let endpoints = Endpoints {
        telemetry,
        status: Box::new(
            move || json!({ "updates": updates, "run": lock(&shown).run.clone(), "limits": lock(&shown).limits.clone() }),
        ),
        health: Box::new(move || lock(&asked).health.clone()),
        control: token.map(|token| control(token, system.remote().clone())),
    };
    let server = system.handle().block_on(Server::start(address, endpoints));
    let server = server.map_err(|error| Failure::Environment(error.to_string()))?;
    observer.note(&format!("telemetry on http://{}/metrics", server.address()));
    Ok(Some(server))
}

/// Control requests of the server.
fn control(token: ControlToken, remote: Remote) -> Control {
    let carry_out = move |command| -> Pin<Box<dyn Future<Output = _> + Send>> {
        let remote = remote.clone();
        Box::pin(async move {
            obey(&remote, command).await.map_err(|error| match error {
                OrderError::Refused(reason) => CommandError::Refused(reason),
                gone @ OrderError::Gone(_) => CommandError::Gone(gone.to_string()),
            })
        })
    };
    Control { token, carry_out: Box::new(carry_out) }
}

async fn obey(remote: &Remote, command: Command) -> Result<(), OrderError> {
    match command {
        Command::Scale(Scale { role, count }) => remote.scale(remote.role(&role)?, count).await,
        Command::Pause(Pause { role, paused }) => remote.pause(remote.role(&role)?, paused),
        Command::Drain => {
            remote.drain();
            Ok(())
        }
    }
}

/// What the server gives out, as of the last look.
struct Status {
    run: Value,
    /// Whether each limit is held, and the last evaluation.
    limits: Value,
    /// How the run is, in a word; or which stage is not there, in a sentence.
    health: Result<String, String>,
}

impl Default for Status {
    fn default() -> Self {
        Self { run: Value::Null, limits: Value::Null, health: Ok("starting".to_owned()) }
    }
}

impl Status {
    fn of(system: &System<ModelEngines>, limits: Value) -> Self {
        let report = observe(system);
        let lacking = report.stages.iter().find(|stage| stage.state == StageState::Absent);
        let health = match lacking {
            // One after the other has nothing more to do.
            _ if system.is_draining() => Ok("draining".to_owned()),
            Some(stage) => Err(format!("{}-{} is not running", stage.name, stage.index)),
            None => Ok("ok".to_owned()),
        };
        Self { run: describe_run(system, &report), limits, health }
    }
}

/// How the stages are; nothing of a run that ends just now, which tells its reason next.
fn observe(system: &System<ModelEngines>) -> Report {
    system.observe().unwrap_or_default()
}

fn describe_run(system: &System<ModelEngines>, report: &Report) -> Value {
    let (counts, (credits_available, credits_total)) = (system.counts(), system.credits());
    let stages = report.stages.iter().map(|stage| {
        json!({
            "stage": format!("{}-{}", stage.name, stage.index),
            "running": stage.state != StageState::Absent,
            "state": stage.state.label(),
            "activity": stage.activity.label(),
        })
    });
    let edges = system.edges().iter().map(|edge| {
        let items = edge.read().items;
        json!({ "edge": edge.name(), "items": items, "capacity_items": edge.capacity_items() })
    });
    let failures = report
        .failures
        .iter()
        .map(|failure| json!({ "stage": &*failure.stage, "cause": failure.cause.label(), "reason": &*failure.reason }));
    let outcomes = Outcome::ALL.map(|outcome| (outcome.label().to_owned(), json!(counts.ended(outcome))));
    json!({
        "version": system.version().0,
        "draining": system.is_draining(),
        "stages": stages.collect::<Vec<_>>(),
        "edges": edges.collect::<Vec<_>>(),
        "credits_available": credits_available,
        "credits_total": credits_total,
        "prompts_drawn": counts.drawn,
        "prompts_open": counts.open,
        "prompts_ended": serde_json::Map::from_iter(outcomes),
        "restarts": report.restarts,
        "failures": failures.collect::<Vec<_>>(),
    })
}

/// What is written of an update beside what the stages tell: the time since the update before, by role and activity.
struct Accounts {
    last_update: Instant,
    spent: Spent,
}

impl Default for Accounts {
    fn default() -> Self {
        Self { last_update: Instant::now(), spent: Spent::new() }
    }
}

impl Accounts {
    fn row(
        &mut self,
        system: &System<ModelEngines>,
        update: &Update,
        observer: &mut dyn Observer,
    ) -> Vec<(String, f64)> {
        let named = Named { only: update.constraints.len() == 1 };
        let constraints = update.constraints.iter().map(|step| step.constraint.as_str());
        let mut metrics = named.batch(&BatchMetrics::of(&update.batch, constraints));
        metrics.extend(observer.rollouts(&update.batch));
        metrics.extend(named.steps(&update.constraints));
        metrics.extend(named.update(&update.metrics));
        observer.updated(update.version.0, &update.constraints, &update.metrics);
        let report = observe(system);
        let spent = spent(&report);
        for (name, (_, total)) in &spent {
            let before = self.spent.get(name).map_or([0.0; 4], |(_, before)| *before);
            let idle = |spent: [f64; 4]| spent[1..].iter().sum::<f64>();
            // A role that was scaled down takes its time with it.
            metrics.push((format!("busy_seconds_{name}"), (total[0] - before[0]).max(0.0)));
            metrics.push((format!("idle_seconds_{name}"), (idle(*total) - idle(before)).max(0.0)));
        }
        observer.waits(&waits(&self.spent, &spent));
        self.spent = spent;
        for edge in system.edges() {
            metrics.push((format!("edge_depth_{}", edge.name().replace('→', "_")), edge.read().items as f64));
        }
        let counts = system.counts();
        for outcome in [Outcome::DroppedStale, Outcome::Failed, Outcome::Quarantined] {
            metrics.push((format!("rollouts_{}", outcome.label()), counts.ended(outcome) as f64));
        }
        metrics.extend([
            ("learn_seconds".to_owned(), update.learn_seconds),
            ("update_seconds".to_owned(), self.last_update.elapsed().as_secs_f64()),
            ("restarts".to_owned(), report.restarts as f64),
        ]);
        self.last_update = Instant::now();
        metrics
    }
}
