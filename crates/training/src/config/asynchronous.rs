//! Sections of an asynchronous run: `[schedule]`, `[placement]`, `[edges]`, `[supervision]`, `[telemetry]`.
//!
//! What would make a run stand still for ever is refused here, with the reason, before anything starts.

use super::{CorrectionKind, Device, TrainConfig, Validate};
use saddle_core::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `[schedule]`: when rollouts are made and when they are trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ScheduleSection {
    /// Whether the stages take turns or work at the same time.
    pub kind: ScheduleKind,
    /// η: a rollout is trained on if its oldest token is at most so many versions old, else dropped and counted. 0 follows
    /// the synchronous schedule to the bit. The asynchronous schedule only.
    pub staleness: usize,
    /// When a generator takes newer weights.
    pub weights: WeightsTaking,
    /// Train on stale rollouts with `correction.kind = "none"`; published runs collapse at one version of lag without it.
    pub allow_uncorrected: bool,
}

/// Whether the stages take turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// One after the other, on one thread.
    Synchronous,
    /// Each on its own thread.
    #[default]
    Asynchronous,
}

/// When a generator takes newer weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightsTaking {
    /// Between two tokens; the keys and values of earlier tokens stay as they are.
    #[default]
    ContinueKeep,
    /// Between two tokens; keys and values are computed anew.
    ContinueRebuild,
    /// Between responses: those under way are finished first.
    Drain,
}

impl Default for ScheduleSection {
    fn default() -> Self {
        let (kind, weights) = (ScheduleKind::default(), WeightsTaking::default());
        Self { kind, staleness: 1, weights, allow_uncorrected: false }
    }
}

/// `[placement]`: which stage computes where. The asynchronous schedule only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PlacementSection {
    /// Generators.
    pub generator: StagePlacement,
    /// Scorers of the reward.
    pub reward: StagePlacement,
    /// Scorers of each cost.
    pub cost: StagePlacement,
    /// Scorers of the reference log-probs.
    pub reference: StagePlacement,
    /// The learner, of which there is one. Its device is `run.device`, where the models are read.
    pub learner: StagePlacement,
    /// How far generators and scorers stand back behind the learner where they share cores, as `nice` counts it, 0 to 19. The
    /// learner is mostly what a run waits for; 5 gives it three times the share of another thread on its core.
    pub nice: i32,
    /// Each stage on a GPU has a stream of its own, so that generation, scoring and learning overlap there. Without, they share
    /// one and take turns on the GPU.
    pub streams: bool,
}

impl Default for PlacementSection {
    fn default() -> Self {
        let [generator, reward, cost, reference, learner] = <[StagePlacement; 5]>::default();
        Self { generator, reward, cost, reference, learner, nice: 5, streams: true }
    }
}

/// Where a stage computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StagePlacement {
    /// How many of it.
    pub count: usize,
    /// Its device; `run.device` unless given.
    pub device: Option<Device>,
    /// CPU threads for one tensor operation; 0 means `run.threads`. Where that is 0 too, it is half of the cores, since
    /// stages work side by side; all of them with `schedule.staleness = 0`, where stages take turns.
    pub threads: usize,
}

impl Default for StagePlacement {
    fn default() -> Self {
        Self { count: 1, device: None, threads: 0 }
    }
}

/// `[edges]`: the bounds of what lies between stages, and deadlines. The asynchronous schedule only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EdgesSection {
    /// Most items on an edge.
    pub items: usize,
    /// Most mebibytes on an edge.
    pub mebibytes: usize,
    /// A stage that gets no input, or no room for its output, for so long fails, in seconds. Longer than the longest update,
    /// during which generators may have nothing to do, and above `response_seconds`, `join_seconds` and
    /// `supervision.heartbeat_seconds`.
    pub patience_seconds: f64,
    /// A response that is not finished after so long is given up and tried again, in seconds.
    pub response_seconds: f64,
    /// A rollout whose scores are not all there so long after the first is given up and tried again, in seconds.
    pub join_seconds: f64,
    /// A scorer waits so long for more responses to score together, in seconds, up to `ppo.micro_batch_tokens`.
    pub flush_seconds: f64,
}

impl Default for EdgesSection {
    fn default() -> Self {
        Self {
            items: 256,
            mebibytes: 256,
            patience_seconds: 600.0,
            response_seconds: 300.0,
            join_seconds: 300.0,
            flush_seconds: 0.01,
        }
    }
}

/// `[supervision]`: what is done about stages that fail. The asynchronous schedule only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SupervisionSection {
    /// A stage that works for so long without a sign of life is replaced, in seconds. Longer than the longest update.
    pub heartbeat_seconds: f64,
    /// So many restarts of one stage within `window_seconds`; one more failure ends the run.
    pub restarts: usize,
    /// See `restarts`.
    pub window_seconds: f64,
    /// Wait before the first restart in a window, in seconds; it doubles with each further one.
    pub backoff_seconds: f64,
    /// A prompt whose attempts failed so often is set aside and counted.
    pub attempts: u32,
}

impl Default for SupervisionSection {
    fn default() -> Self {
        Self { heartbeat_seconds: 300.0, restarts: 5, window_seconds: 600.0, backoff_seconds: 0.1, attempts: 3 }
    }
}

/// `[telemetry]`: what a run tells while it runs. The asynchronous schedule only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TelemetrySection {
    /// Where /metrics, /healthz and /v1/status are served, such as `127.0.0.1:9464`; nowhere unless given. Port 0 is any.
    pub address: Option<String>,
    /// A file with a token, for its owner to read, that control requests must bring: /v1/scale, /v1/pause, /v1/drain. Without
    /// it they are refused.
    pub control_token_file: Option<PathBuf>,
}

/// Longest time that a key may give.
const DAY_SECONDS: f64 = 86_400.0;
/// Most stages of one kind; a larger number is a slip.
const COUNT_LIMIT: usize = 256;
/// Of a token in a rollout: its id, its log-prob, its version.
const TOKEN_BYTES: usize = size_of::<i64>() + size_of::<f32>() + size_of::<u64>();

impl TrainConfig {
    /// Whether the schedule is the asynchronous one.
    #[must_use]
    pub fn is_asynchronous(&self) -> bool {
        self.schedule.kind == ScheduleKind::Asynchronous
    }

    /// CPU threads for one tensor operation of the stage at `placement`.
    #[must_use]
    pub fn stage_threads(&self, placement: &StagePlacement, cores: usize) -> usize {
        let shared = if self.schedule.staleness == 0 { cores } else { (cores / 2).max(1) };
        [placement.threads, self.run.threads].into_iter().find(|threads| *threads > 0).unwrap_or(shared)
    }

    /// What is wrong with the sections of this file, together with the others.
    pub(super) fn schedule_problems(&self) -> Problems {
        let mut problems = Problems::default();
        if !self.is_asynchronous() {
            let message = "only the asynchronous schedule is served; leave schedule.kind = \"synchronous\" out";
            problems.require(self.telemetry.address.is_none(), "telemetry.address", message);
            return problems;
        }
        problems.section("placement", self.placement.problems());
        let (home, own) = (&self.run.device, self.placement.learner.device.as_ref());
        let message = format!(
            "must be run.device, {home:?}, or left out: the learner computes where the models are read; set run.device, and a device for each stage that is to be elsewhere"
        );
        problems.require(own.is_none_or(|own| own == home), "placement.learner.device", message);
        problems.section("edges", self.edges.problems());
        problems.section("supervision", self.supervision.problems());
        problems.section("telemetry", self.telemetry.problems());
        let staleness = self.schedule.staleness;
        problems.require(staleness <= 64, "schedule.staleness", format!("must be at most 64, is {staleness}"));
        problems.require(
            self.ppo.delay_updates == 0,
            "ppo.delay_updates",
            "is an experiment of the synchronous schedule; set schedule.staleness",
        );
        if staleness == 0 {
            for (key, placement) in self.placement.scalable() {
                let message = "must be 1 with schedule.staleness = 0, where each stage takes the batch whole";
                problems.require(placement.count <= 1, &format!("placement.{key}.count"), message);
            }
        }
        problems.require(
            staleness == 0 || self.correction.kind != CorrectionKind::None || self.schedule.allow_uncorrected,
            "correction.kind",
            "\"none\" trains on stale rollouts as if they were fresh, which collapses; choose another, or set schedule.allow_uncorrected = true",
        );
        self.require_room(&mut problems);
        self.require_patience(&mut problems);
        problems
    }

    /// Whatever holds a stage up is given up before those that wait for it lose their patience.
    fn require_patience(&self, problems: &mut Problems) {
        let patience = self.edges.patience_seconds;
        for (key, seconds, what) in [
            ("supervision.heartbeat_seconds", self.supervision.heartbeat_seconds, "a stage that hangs is replaced"),
            ("edges.response_seconds", self.edges.response_seconds, "a response that does not end is given up"),
            ("edges.join_seconds", self.edges.join_seconds, "a rollout without all its scores is given up"),
        ] {
            let message =
                format!("must be above {key} = {seconds}, is {patience}: stages that wait would fail before {what}");
            // What is not a number is a problem of its own.
            let longer = patience.partial_cmp(&seconds).is_none_or(Ordering::is_gt);
            problems.require(longer, "edges.patience_seconds", message);
        }
    }

    /// The largest item has to fit on an edge, or nothing passes it for ever.
    fn require_room(&self, problems: &mut Problems) {
        let rollouts = if self.schedule.staleness == 0 { self.ppo.batch_rollouts } else { self.generation.rows };
        let tokens = self.prompts.max_tokens.saturating_add(self.generation.max_new_tokens);
        let largest = rollouts.saturating_mul(tokens).saturating_mul(TOKEN_BYTES).div_ceil(1 << 20);
        let message = format!(
            "must be at least {largest}, is {}: {rollouts} rollouts of {tokens} tokens may pass an edge together",
            self.edges.mebibytes
        );
        problems.require(largest <= self.edges.mebibytes, "edges.mebibytes", message);
    }
}

impl PlacementSection {
    fn scalable(&self) -> [(&'static str, &StagePlacement); 4] {
        let Self { generator, reward, cost, reference, .. } = self;
        [("generator", generator), ("reward", reward), ("cost", cost), ("reference", reference)]
    }
}

impl Validate for PlacementSection {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        for (key, placement) in self.scalable() {
            let message = format!("must be in 1..={COUNT_LIMIT}, is {}", placement.count);
            problems.require((1..=COUNT_LIMIT).contains(&placement.count), &format!("{key}.count"), message);
        }
        problems.require((0..=19).contains(&self.nice), "nice", format!("must be in 0..=19, is {}", self.nice));
        problems.require(self.learner.count == 1, "learner.count", "must be 1: there is one learner");
        problems
    }
}

impl Validate for EdgesSection {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        problems.require(self.items > 0, "items", "must be at least 1: nothing would ever pass");
        problems.require(self.mebibytes > 0, "mebibytes", "must be at least 1: nothing would ever pass");
        for (key, value) in [
            ("patience_seconds", self.patience_seconds),
            ("response_seconds", self.response_seconds),
            ("join_seconds", self.join_seconds),
        ] {
            require_time(&mut problems, key, value);
        }
        let (flush, join) = (self.flush_seconds, self.join_seconds);
        let message = format!(
            "must be 0 or more and below half of join_seconds = {join}, is {flush}: rollouts would be given up before their scores are there"
        );
        problems.require(flush >= 0.0 && 2.0 * flush < join, "flush_seconds", message);
        problems
    }
}

impl Validate for SupervisionSection {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        require_time(&mut problems, "heartbeat_seconds", self.heartbeat_seconds);
        require_time(&mut problems, "window_seconds", self.window_seconds);
        let backoff = self.backoff_seconds;
        problems.require(
            (0.0..=DAY_SECONDS).contains(&backoff),
            "backoff_seconds",
            format!("must be in 0..={DAY_SECONDS}, is {backoff}"),
        );
        problems.require(self.restarts <= 1000, "restarts", format!("must be at most 1000, is {}", self.restarts));
        problems.require(self.attempts > 0, "attempts", "must be at least 1");
        problems
    }
}

impl Validate for TelemetrySection {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        let Some(text) = &self.address else {
            let message = "is for a server: set telemetry.address too";
            problems.require(self.control_token_file.is_none(), "control_token_file", message);
            return problems;
        };
        let address = text.parse::<SocketAddr>();
        let message = format!("must be an address of this machine with a port, such as 127.0.0.1:9464, is {text}");
        problems.require(address.is_ok_and(|address| address.ip().is_loopback()), "address", message);
        problems
    }
}

fn require_time(problems: &mut Problems, key: &str, seconds: f64) {
    let holds = seconds > 0.0 && seconds <= DAY_SECONDS;
    problems.require(holds, key, format!("must be above 0 and at most {DAY_SECONDS} (a day), is {seconds}"));
}

/// A valid number of seconds as a duration.
#[must_use]
pub fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &str) -> TrainConfig {
        let recipe = r#"
            policy.from = "p"
            reward_model.from = "r"
            constraints.cost.from = "c"
            prompts.train = [{ path = "x", format = "prompts" }]
        "#;
        toml::from_str(&format!("{recipe}\n{more}")).unwrap()
    }

    fn problems(more: &str) -> Vec<String> {
        config(more).problems().iter().map(|problem| problem.key.clone()).collect()
    }

    #[test]
    fn stages_that_work_side_by_side_share_the_cores() {
        let threads = |more: &str| {
            let config = config(more);
            config.stage_threads(&config.placement.learner, 8)
        };
        assert_eq!(threads(""), 4);
        assert_eq!(threads("schedule.staleness = 0"), 8);
        assert_eq!(threads("run.threads = 3"), 3);
        assert_eq!(threads("run.threads = 3\nplacement.learner.threads = 5"), 5);
        assert_eq!(config("").stage_threads(&StagePlacement::default(), 1), 1);
    }

    #[test]
    fn the_defaults_can_be_run() {
        assert_eq!(problems(""), Vec::<String>::new());
        assert_eq!(problems("schedule.staleness = 0\ncorrection.kind = \"none\""), Vec::<String>::new());
    }

    #[test]
    fn a_learner_elsewhere_than_the_run_is_refused() {
        assert_eq!(problems("placement.learner.device = \"cuda:1\""), ["placement.learner.device"]);
        assert!(problems("run.device = \"cuda:1\"\nplacement.learner.device = \"cuda:1\"").is_empty());
        let message = config("placement.learner.device = \"cuda:1\"").problems().to_string();
        assert!(message.contains("\"cpu\"") && message.contains("set run.device"), "{message}");
    }

    #[test]
    fn stale_training_without_correction_is_refused_unless_it_is_allowed() {
        assert_eq!(problems("correction.kind = \"none\""), ["correction.kind"]);
        assert!(problems("correction.kind = \"none\"\nschedule.allow_uncorrected = true").is_empty());
    }

    #[test]
    fn what_cannot_pass_or_would_never_be_joined_is_refused() {
        assert_eq!(problems("edges.mebibytes = 1\nprompts.max_tokens = 1000"), ["edges.mebibytes"]);
        assert_eq!(
            problems("edges.items = 0\nedges.mebibytes = 0"),
            ["edges.items", "edges.mebibytes", "edges.mebibytes"]
        );
        assert_eq!(problems("edges.join_seconds = 1.0\nedges.flush_seconds = 0.5"), ["edges.flush_seconds"]);
        assert_eq!(problems("edges.patience_seconds = nan"), ["edges.patience_seconds"]);
    }

    #[test]
    fn a_multiplier_that_could_never_move_is_refused_in_both_schedules() {
        let key = "constraints.cost.dual.estimator.fresh.minimum_effective_samples";
        for schedule in ["", "schedule.kind = \"synchronous\"\n"] {
            assert_eq!(problems(&format!("{schedule}ppo.batch_rollouts = 35")), [key]);
            assert!(problems(&format!("{schedule}ppo.batch_rollouts = 36")).is_empty());
        }
        let fixed = "ppo.batch_rollouts = 8\nconstraints.cost.dual.controller = { kind = \"fixed\" }";
        assert!(problems(fixed).is_empty(), "it is not to move");
    }

    #[test]
    fn patience_outlasts_whatever_is_given_up_or_replaced_meanwhile() {
        for key in ["supervision.heartbeat_seconds", "edges.response_seconds", "edges.join_seconds"] {
            assert_eq!(problems(&format!("{key} = 600.0")), ["edges.patience_seconds"], "{key}");
            assert!(problems(&format!("{key} = 600.0\nedges.patience_seconds = 600.1")).is_empty(), "{key}");
        }
    }

    #[test]
    fn without_staleness_there_is_one_stage_of_a_kind() {
        let keys = problems("schedule.staleness = 0\nplacement.generator.count = 2\nplacement.cost.count = 3");
        assert_eq!(keys, ["placement.generator.count", "placement.cost.count"]);
        assert_eq!(problems("placement.learner.count = 2"), ["placement.learner.count"]);
        assert_eq!(problems("placement.nice = 20"), ["placement.nice"]);
        assert_eq!(problems("placement.nice = -1"), ["placement.nice"]);
    }

    #[test]
    fn telemetry_is_for_this_machine_and_for_the_asynchronous_schedule() {
        assert!(problems("telemetry.address = \"127.0.0.1:0\"").is_empty());
        let token = "telemetry.control_token_file = \"token\"";
        assert_eq!(problems(token), ["telemetry.control_token_file"]);
        assert!(problems(&format!("{token}\ntelemetry.address = \"127.0.0.1:0\"")).is_empty());
        for address in ["0.0.0.0:80", "example"] {
            assert_eq!(problems(&format!("telemetry.address = \"{address}\"")), ["telemetry.address"]);
        }
    }
}
