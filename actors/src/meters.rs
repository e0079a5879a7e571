//! What a run tells through its metrics: who records what, and when.
//!
//! Stages record what they measure themselves; what stands in counters elsewhere (edges, credits, pulses) is copied at each
//! look of the supervisor; what an update tells is recorded when the program takes its report.

use crate::messages::{Cause, Report, StageState};
use crate::work::Update;
use saddle_algorithms::dual::{CostEstimate, HoldCause, Step};
use saddle_core::{Finish, PolicyVersion, PromptOrdinal, Rollout};
use saddle_flow::invariants::{Invariant, violations};
use saddle_flow::{Activity, Credits, EdgeObserver, EdgeStats, LedgerObserver, Outcome};
use saddle_telemetry::{Counter, Gauge, Histogram, Telemetry, catalogue};
use saddle_training::{BatchMetrics, DualStep, StreamMetrics, UpdateMetrics};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The metrics of one run.
pub(crate) struct Meters {
    telemetry: Arc<Telemetry>,
    rollouts: [Counter; Outcome::ALL.len()],
    staleness: [Histogram; 3],
    publish: [Histogram; 2],
    weights_bytes: Gauge,
    /// What is copied at each look; set once, when the run is wired.
    watched: OnceLock<(Credits, Vec<Arc<EdgeStats>>)>,
    /// Violations counted so far, in the order of [`Invariant::ALL`].
    violations: Mutex<[u64; Invariant::ALL.len()]>,
}

impl Meters {
    pub(crate) fn new(telemetry: Arc<Telemetry>) -> Self {
        let of = |stage| catalogue::ROLLOUT_STALENESS.of(&telemetry, [stage]);
        let publish = |phase| catalogue::WEIGHTS_PUBLISH.of(&telemetry, [phase]);
        Self {
            rollouts: Outcome::ALL.map(|outcome| catalogue::ROLLOUTS.of(&telemetry, [outcome.label()])),
            staleness: ["in_flight", "queued", "consumed"].map(of),
            publish: ["copy", "swap"].map(publish),
            weights_bytes: catalogue::WEIGHTS_BYTES.of(&telemetry, []),
            watched: OnceLock::new(),
            violations: Mutex::new(Invariant::ALL.map(violations)),
            telemetry,
        }
    }

    /// Names what is copied at each look.
    pub(crate) fn watch(&self, credits: Credits, edges: Vec<Arc<EdgeStats>>) {
        catalogue::CREDITS_LIMIT.of(&self.telemetry, []).set(credits.total() as f64);
        for edge in &edges {
            catalogue::EDGE_CAPACITY.of(&self.telemetry, [edge.name()]).set(edge.capacity_items() as f64);
        }
        // A run is wired once.
        let _ = self.watched.set((credits, edges));
    }

    pub(crate) fn edge(&self, name: &str) -> Arc<dyn EdgeObserver> {
        Arc::new(EdgeMeters(catalogue::EDGE_WAIT.of(&self.telemetry, [name])))
    }

    pub(crate) fn generator(&self, index: usize, slots: usize) -> GeneratorMeters {
        let (telemetry, index) = (&self.telemetry, index.to_string());
        GeneratorMeters {
            tokens: catalogue::GENERATED_TOKENS.of(telemetry, [&index]),
            step: catalogue::DECODE_STEP.of(telemetry, []),
            length: catalogue::RESPONSE_LENGTH.of(telemetry, []),
            truncated: catalogue::TRUNCATED.of(telemetry, []),
            occupied: catalogue::SLOTS_OCCUPIED.of(telemetry, [&index]),
            staleness: self.staleness[0].clone(),
            slots: slots.max(1) as f64,
        }
    }

    pub(crate) fn scorer(&self, stream: &str) -> ScorerMeters {
        let telemetry = &self.telemetry;
        ScorerMeters {
            seconds: catalogue::SCORE.of(telemetry, [stream]),
            batch: catalogue::SCORE_BATCH.of(telemetry, [stream]),
        }
    }

    /// A response has all its scores.
    pub(crate) fn queued(&self, rollout: &Rollout, newest: PolicyVersion) {
        record_age(&self.staleness[1], rollout, newest);
    }

    /// A rollout of this staleness is learnt from.
    pub(crate) fn consumed(&self, versions: u64) {
        self.staleness[2].record(versions as f64);
    }

    /// The learner has copied its weights.
    pub(crate) fn copied(&self, duration: Duration, size_bytes: usize) {
        self.publish[0].record(duration.as_secs_f64());
        self.weights_bytes.set(size_bytes as f64);
    }

    /// A generator has taken newer weights.
    pub(crate) fn swapped(&self, duration: Duration) {
        self.publish[1].record(duration.as_secs_f64());
    }

    pub(crate) fn restarted(&self, role: &str, cause: Cause) {
        catalogue::ACTOR_RESTARTS.of(&self.telemetry, [role, cause.label()]).increment(1);
    }

    /// A stage is no more, and its series with it.
    pub(crate) fn removed(&self, role: &str, index: usize) {
        self.telemetry.show_actor(role, index, false);
    }

    /// Copies what is counted elsewhere.
    pub(crate) fn look(&self, report: &Report) {
        let telemetry = &self.telemetry;
        if let Some((credits, edges)) = self.watched.get() {
            catalogue::CREDITS_AVAILABLE.of(telemetry, []).set(credits.available() as f64);
            for edge in edges {
                let counts = edge.read();
                catalogue::EDGE_DEPTH.of(telemetry, [edge.name()]).set(counts.items as f64);
                catalogue::EDGE_BACKPRESSURE.of(telemetry, [edge.name()]).follow(counts.blocked);
            }
        }
        let now = unix_seconds();
        for stage in &report.stages {
            self.telemetry.show_actor(&stage.name, stage.index, true);
            let index = stage.index.to_string();
            for state in StageState::ALL {
                let is_it = f64::from(u8::from(state == stage.state));
                catalogue::ACTOR_STATE.of(telemetry, [&stage.name, &index, state.label()]).set(is_it);
            }
            for (activity, spent) in Activity::ALL.into_iter().zip(stage.spent) {
                match activity {
                    Activity::Busy => catalogue::ACTOR_BUSY.of(telemetry, [&stage.name, &index]).follow(spent),
                    idle => {
                        catalogue::ACTOR_IDLE.of(telemetry, [&stage.name, &index, idle.label()]).follow(spent);
                    }
                }
            }
            let beat = now - stage.age.as_secs_f64();
            catalogue::ACTOR_HEARTBEAT.of(telemetry, [&stage.name, &index]).set(beat);
        }
        catalogue::OVERLAP.of(telemetry, []).set(report.overlap_ratio);
        let mut known = saddle_flow::lock(&self.violations);
        for (known, invariant) in known.iter_mut().zip(Invariant::ALL) {
            let count = violations(invariant);
            let metric = catalogue::INVARIANT_VIOLATIONS.of(telemetry, [invariant.number()]);
            metric.increment(count.saturating_sub(*known));
            *known = count;
        }
    }

    /// Records what an update tells.
    pub(crate) fn learnt(&self, update: &Update) {
        let telemetry = &self.telemetry;
        catalogue::POLICY_VERSION.of(telemetry, []).set(update.version.0 as f64);
        catalogue::LAST_STEP.of(telemetry, []).set(unix_seconds());
        let tokens: usize = update.batch.iter().map(|each| each.rollout.tokens.len()).sum();
        catalogue::TRAINED_TOKENS.of(telemetry, []).increment(tokens as u64);
        let constraints = update.constraints.iter().map(|step| step.constraint.as_str());
        let batch = BatchMetrics::of(&update.batch, constraints);
        catalogue::REWARD_MEAN.of(telemetry, []).set(batch.reward_mean);
        for cost in &batch.costs {
            catalogue::COST_MEAN.of(telemetry, [&cost.constraint]).set(cost.mean);
            catalogue::UNSAFE.of(telemetry, [&cost.constraint]).set(cost.unsafe_ratio);
        }
        self.corrected(&update.metrics);
        self.trained(&update.metrics);
        update.constraints.iter().for_each(|step| self.stepped(step));
    }

    /// Records how far the batch and the policies were from one another.
    fn corrected(&self, update: &UpdateMetrics) {
        let (telemetry, importance) = (&self.telemetry, &update.importance);
        catalogue::IMPORTANCE_WEIGHT_MEAN.of(telemetry, []).set(importance.weight_mean);
        catalogue::IMPORTANCE_WEIGHT_MAX.of(telemetry, []).set(importance.weight_max);
        catalogue::IMPORTANCE_ESS.of(telemetry, ["token"]).set(importance.ess_ratio_token);
        catalogue::IMPORTANCE_ESS.of(telemetry, ["sequence"]).set(importance.ess_ratio_sequence);
        catalogue::IMPORTANCE_TRUNCATED.of(telemetry, []).set(importance.truncated_ratio);
        catalogue::REJECTED.of(telemetry, []).set(update.rejected_ratio);
        catalogue::KL.of(telemetry, ["behaviour_proximal"]).set(update.kl.behaviour_proximal);
        catalogue::KL.of(telemetry, ["proximal_current"]).set(update.kl.proximal_current);
        catalogue::KL.of(telemetry, ["current_reference"]).set(update.kl.current_reference);
        catalogue::KL_COEFFICIENT.of(telemetry, []).set(update.kl_coefficient);
        if let Some(target) = update.reference_kl_target {
            catalogue::REFERENCE_KL_TARGET.of(telemetry, []).set(target);
        }
        if let Some(gap) = update.log_prob_gap {
            catalogue::LOG_PROB_GAP.of(telemetry, []).set(gap);
        }
    }

    /// Records what became of the policy and the critics.
    fn trained(&self, update: &UpdateMetrics) {
        let telemetry = &self.telemetry;
        catalogue::ENTROPY.of(telemetry, []).set(update.entropy);
        catalogue::CLIP.of(telemetry, []).set(update.clip_ratio);
        catalogue::LOSS.of(telemetry, ["policy"]).set(update.policy_loss);
        if let Some(loss) = update.ptx_loss {
            catalogue::LOSS.of(telemetry, ["ptx"]).set(loss);
        }
        catalogue::GRAD_NORM.of(telemetry, ["policy"]).set(update.gradient_norm.0);
        catalogue::GRAD_NORM.of(telemetry, ["critic"]).set(update.gradient_norm.1);
        for StreamMetrics { stream, critic_loss, explained_variance } in &update.streams {
            catalogue::LOSS.of(telemetry, [&format!("critic_{}", stream.label())]).set(*critic_loss);
            catalogue::EXPLAINED_VARIANCE.of(telemetry, [stream.label()]).set(*explained_variance);
        }
        let (guards, phases) = (&update.guards, &update.phases);
        for (cause, count) in [
            ("rejected", guards.skipped_rejected),
            ("drift", guards.skipped_drift),
            ("non_finite", guards.skipped_non_finite),
        ] {
            catalogue::UPDATES_SKIPPED.of(telemetry, [cause]).increment(count);
        }
        for (phase, seconds) in [
            ("logprob", phases.logprob),
            ("value", phases.value),
            ("policy", phases.policy),
            ("critic", phases.critic),
            ("optimizer", phases.optimizer),
        ] {
            catalogue::LEARNER_STEP.of(telemetry, [phase]).record(seconds);
        }
    }

    /// Records what a constraint's step went by.
    fn stepped(&self, step: &DualStep) {
        let telemetry = &self.telemetry;
        let constraint = step.constraint.as_str();
        catalogue::LAMBDA.of(telemetry, [constraint]).set(step.multiplier);
        catalogue::LAMBDA_MAX.of(telemetry, [constraint]).set(step.maximum_multiplier);
        catalogue::COST_LIMIT.of(telemetry, [constraint]).set(step.limit);
        if let Some(CostEstimate { mean, standard_error, .. }) = step.estimate {
            catalogue::COST_ESTIMATE.of(telemetry, [constraint, "controller"]).set(mean);
            catalogue::COST_ESTIMATE_STDERR.of(telemetry, [constraint, "controller"]).set(standard_error);
            catalogue::CONSTRAINT_VIOLATION.of(telemetry, [constraint]).set((mean - step.limit).max(0.0));
        }
        if let Some(ratio) = step.ess_ratio {
            catalogue::COST_ESTIMATOR_ESS.of(telemetry, [constraint]).set(ratio);
        }
        for cause in HoldCause::ALL {
            let held = u64::from(step.step == Step::Held(cause));
            catalogue::LAMBDA_HOLDS.of(telemetry, [constraint, cause.label()]).increment(held);
        }
        catalogue::LIMIT_EXCEEDED.of(telemetry, [constraint]).increment(u64::from(step.is_over()));
    }
}

impl LedgerObserver for Meters {
    fn ended(&self, _ordinal: PromptOrdinal, outcome: Outcome) {
        self.rollouts[outcome as usize].increment(1);
    }
}

struct EdgeMeters(Histogram);

impl EdgeObserver for EdgeMeters {
    fn starved(&self, wait: Duration) {
        self.0.record(wait.as_secs_f64());
    }
}

/// What a generator records.
pub(crate) struct GeneratorMeters {
    tokens: Counter,
    step: Histogram,
    length: Histogram,
    truncated: Counter,
    occupied: Gauge,
    staleness: Histogram,
    slots: f64,
}

impl GeneratorMeters {
    /// A decoding step of so many responses, each of which got a token.
    pub(crate) fn stepped(&self, duration: Duration, responses: usize) {
        self.step.record(duration.as_secs_f64());
        self.occupied.set(responses as f64 / self.slots);
    }

    pub(crate) fn finished(&self, rollout: &Rollout, newest: PolicyVersion) {
        self.tokens.increment(rollout.tokens.len() as u64);
        self.length.record(rollout.tokens.len() as f64);
        self.truncated.increment(u64::from(rollout.finish == Finish::Length));
        record_age(&self.staleness, rollout, newest);
    }
}

/// What a scorer records.
pub(crate) struct ScorerMeters {
    seconds: Histogram,
    batch: Histogram,
}

impl ScorerMeters {
    pub(crate) fn scored(&self, duration: Duration, responses: usize) {
        self.seconds.record(duration.as_secs_f64());
        self.batch.record(responses as f64);
    }
}

/// How far the oldest token is behind the newest weights.
fn record_age(histogram: &Histogram, rollout: &Rollout, newest: PolicyVersion) {
    if let Some(oldest) = rollout.oldest_version() {
        histogram.record(newest.0.saturating_sub(oldest.0) as f64);
    }
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
