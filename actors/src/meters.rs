//! What a run tells through its metrics: who records what, and when.
//!
//! Stages record what they measure themselves; what stands in counters elsewhere (edges, credits, pulses) is copied at each
//! look of the supervisor; what an update tells is recorded when the program takes its report.

use crate::messages::{Cause, Report};
use crate::work::Update;
use saddle_algorithms::dual::{CostEstimate, HoldCause, Step};
use saddle_core::{Finish, PolicyVersion, PromptOrdinal, Rollout};
use saddle_flow::invariants::{Invariant, violations};
use saddle_flow::{Activity, Credits, EdgeObserver, EdgeStats, LedgerObserver, Outcome};
use saddle_telemetry::{Counter, Gauge, Histogram, Telemetry, catalogue};
use saddle_training::DualStep;
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
            let index = stage.index.to_string();
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
        let mut known = crate::shared::lock(&self.violations);
        for (known, invariant) in known.iter_mut().zip(Invariant::ALL) {
            let count = violations(invariant);
            let metric = catalogue::INVARIANT_VIOLATIONS.of(telemetry, [invariant.number()]);
            metric.increment(count.saturating_sub(*known));
            *known = count;
        }
    }

    /// Records what an update tells, by the names of its numbers.
    pub(crate) fn learnt(&self, update: &Update, constraints: &[String]) {
        let telemetry = &self.telemetry;
        catalogue::POLICY_VERSION.of(telemetry, []).set(update.version.0 as f64);
        catalogue::LAST_STEP.of(telemetry, []).set(unix_seconds());
        let tokens: usize = update.batch.iter().map(|each| each.rollout.tokens.len()).sum();
        catalogue::TRAINED_TOKENS.of(telemetry, []).increment(tokens as u64);
        let mean = |value: &dyn Fn(&saddle_core::ScoredRollout) -> f64| {
            update.batch.iter().map(value).sum::<f64>() / update.batch.len().max(1) as f64
        };
        catalogue::REWARD_MEAN.of(telemetry, []).set(mean(&|each| f64::from(each.reward)));
        for (index, name) in constraints.iter().enumerate() {
            let cost = |each: &saddle_core::ScoredRollout| each.costs.get(index).copied().unwrap_or(f32::NAN);
            catalogue::COST_MEAN.of(telemetry, [name]).set(mean(&|each| f64::from(cost(each))));
            catalogue::UNSAFE.of(telemetry, [name]).set(mean(&|each| f64::from(u8::from(cost(each) > 0.0))));
        }
        for (name, value) in &update.metrics {
            self.number(name, *value);
        }
        update.constraints.iter().for_each(|step| self.stepped(step));
    }

    fn number(&self, name: &str, value: f64) {
        let telemetry = &self.telemetry;
        let phase = |phase| catalogue::LEARNER_STEP.of(telemetry, [phase]).record(value);
        let skipped = |cause| catalogue::UPDATES_SKIPPED.of(telemetry, [cause]).increment(value as u64);
        let gauge: Gauge = match name {
            "importance_weight_mean" => catalogue::IMPORTANCE_WEIGHT_MEAN.of(telemetry, []),
            "importance_weight_max" => catalogue::IMPORTANCE_WEIGHT_MAX.of(telemetry, []),
            "importance_ess_ratio_token" => catalogue::IMPORTANCE_ESS.of(telemetry, ["token"]),
            "importance_ess_ratio_sequence" => catalogue::IMPORTANCE_ESS.of(telemetry, ["sequence"]),
            "importance_truncated_ratio" => catalogue::IMPORTANCE_TRUNCATED.of(telemetry, []),
            "rejected_ratio" => catalogue::REJECTED.of(telemetry, []),
            "entropy" => catalogue::ENTROPY.of(telemetry, []),
            "kl_coefficient" => catalogue::KL_COEFFICIENT.of(telemetry, []),
            "reference_kl_target" => catalogue::REFERENCE_KL_TARGET.of(telemetry, []),
            "clip_ratio" => catalogue::CLIP.of(telemetry, []),
            "log_prob_gap" => catalogue::LOG_PROB_GAP.of(telemetry, []),
            "logprob_seconds" => return phase("logprob"),
            "value_seconds" => return phase("value"),
            "policy_seconds" => return phase("policy"),
            "critic_seconds" => return phase("critic"),
            "optimizer_seconds" => return phase("optimizer"),
            "updates_skipped_rejected" => return skipped("rejected"),
            "updates_skipped_drift" => return skipped("drift"),
            "updates_skipped_non_finite" => return skipped("non_finite"),
            name => {
                let (family, label) = if let Some(pair) = name.strip_prefix("kl_") {
                    (&catalogue::KL, pair)
                } else if let Some(net) = name.strip_prefix("loss_") {
                    (&catalogue::LOSS, net)
                } else if let Some(net) = name.strip_prefix("grad_norm_") {
                    (&catalogue::GRAD_NORM, net)
                } else if let Some(stream) = name.strip_prefix("explained_variance_") {
                    (&catalogue::EXPLAINED_VARIANCE, stream)
                } else {
                    return;
                };
                family.of(telemetry, [label])
            }
        };
        gauge.set(value);
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
