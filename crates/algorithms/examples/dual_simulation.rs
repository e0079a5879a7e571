//! Simulates the multiplier loop and the cost estimators, and prints the Markdown tables of `docs/simulation.md`.
//!
//! Everything is seeded: the same program prints the same tables.

#![allow(clippy::print_stdout, reason = "the tables are what this program is for")]

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use saddle_algorithms::dual::{
    ConstraintConfig, Controller, ControllerConfig, CostEstimate, CostEstimator, CostSample, EstimatorConfig,
    FreshConfig, LogSgdConfig, LogSgdLaw, PiConfig, UpperConfig, WindowConfig,
};
use saddle_core::PolicyVersion;

/// `pi` nearly linear in log λ, with little damping: what delay and damping do shows best in it.
const PI: PiConfig = PiConfig {
    integral_gain: 0.1,
    proportional_gain: 0.1,
    violation_gain: 0.0,
    step_limit: 0.1,
    floor: 1e-3,
    dead_zone_standard_errors: 0.5,
    scale_gain_with_delay: true,
};

fn main() {
    delays();
    damping();
    growth();
    estimators();
}

/// A constrained problem small enough to know: reward −½(θ − 2)², cost θ, limit 0. The saddle is θ = 0, λ = 2. The policy
/// takes gradient steps on the Lagrangian; the cost that the controller sees is `delay` versions old.
struct Loop {
    policy: f64,
    history: Vec<f64>,
}

const SADDLE_MULTIPLIER: f64 = 2.0;
const POLICY_RATE: f64 = 0.5;

impl Loop {
    fn new() -> Self {
        Self { policy: 2.0, history: Vec::new() }
    }

    fn advance(&mut self, controller: &mut Controller, delay: usize, noise: f64) {
        self.history.push(self.policy);
        let estimate = self.history.len().checked_sub(1 + delay).map(|seen| CostEstimate {
            mean: self.history[seen] + noise,
            standard_error: 0.0,
            effective_samples: 128.0,
            margin: 0.0,
        });
        controller.step(estimate, delay as f64);
        let multiplier = controller.multiplier();
        self.policy += POLICY_RATE * (2.0 - self.policy - multiplier) / (1.0 + multiplier);
    }
}

/// What one run of the loop shows.
struct Outcome {
    /// Largest λ over the saddle's, minus one.
    overshoot: f64,
    /// Versions after which the cost stays within 0.1 of its limit; `None` if it still left it in the last quarter.
    settling_versions: Option<usize>,
    /// Root mean square of the cost over the last half of the run.
    late_violation: f64,
}

fn respond(pi: PiConfig, delay: usize, noise: impl FnMut() -> f64) -> Outcome {
    const LOOP_VERSIONS: usize = 1000;
    let config = ConstraintConfig {
        controller: ControllerConfig::Pi(pi),
        maximum_multiplier: 100.0,
        ..ConstraintConfig::default()
    };
    let mut controller = Controller::new(&config);
    let (mut simulated, mut largest, mut noise) = (Loop::new(), 0.0_f64, noise);
    for _ in 0..LOOP_VERSIONS {
        simulated.advance(&mut controller, delay, noise());
        largest = largest.max(controller.multiplier());
    }
    let outside = simulated.history.iter().rposition(|cost| cost.abs() > 0.1).map_or(0, |last| last + 1);
    let late = &simulated.history[LOOP_VERSIONS / 2..];
    Outcome {
        overshoot: (largest / SADDLE_MULTIPLIER - 1.0).max(0.0),
        settling_versions: (outside < LOOP_VERSIONS * 3 / 4).then_some(outside),
        late_violation: (late.iter().map(|cost| cost * cost).sum::<f64>() / late.len() as f64).sqrt(),
    }
}

fn delays() {
    println!("### Delay\n");
    println!("| α_0 | delay τ | gain | λ overshoot | settles after | RMS cost, late | the same with noise |");
    println!("|---|---|---|---|---|---|---|");
    for integral_gain in [0.1, 0.4] {
        for delay in [0, 1, 2, 4, 8] {
            for scale_gain_with_delay in [false, true] {
                let pi = PiConfig { integral_gain, scale_gain_with_delay, ..PI };
                let quiet = respond(pi, delay, || 0.0);
                let mut rng = ChaCha8Rng::seed_from_u64(1);
                let noisy = respond(pi, delay, || normal(&mut rng) / 128_f64.sqrt());
                let gain = if scale_gain_with_delay { "α_0/(1+τ)" } else { "α_0" };
                let settles = settling(&quiet);
                println!(
                    "| {integral_gain} | {delay} | {gain} | {:.0} % | {settles} | {:.3} | {:.3} |",
                    100.0 * quiet.overshoot,
                    quiet.late_violation,
                    noisy.late_violation
                );
            }
        }
    }
}

fn damping() {
    println!("\n### Damping\n");
    println!("| α_P | delay τ | λ overshoot | settles after | RMS cost, late, with noise |");
    println!("|---|---|---|---|---|");
    for proportional_gain in [0.0, 0.1, 0.3, 1.0] {
        for delay in [0, 1, 4] {
            let pi = PiConfig { proportional_gain, ..PI };
            let quiet = respond(pi, delay, || 0.0);
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let noisy = respond(pi, delay, || normal(&mut rng) / 128_f64.sqrt());
            println!(
                "| {proportional_gain} | {delay} | {:.0} % | {} | {:.3} |",
                100.0 * quiet.overshoot,
                settling(&quiet),
                noisy.late_violation
            );
        }
    }
}

fn settling(outcome: &Outcome) -> String {
    outcome.settling_versions.map_or("never".to_owned(), |versions| versions.to_string())
}

fn growth() {
    println!("\n### Growth\n");
    println!("λ at a steady excess of 10, from 1, no cap:\n");
    println!("| update | `log_sgd` | `pi` |");
    println!("|---|---|---|");
    let config = LogSgdConfig::default();
    let mut log_sgd = LogSgdLaw::new(1.0);
    let uncapped = ConstraintConfig { maximum_multiplier: f64::MAX, ..ConstraintConfig::default() };
    let mut pi = Controller::new(&uncapped);
    for update in 1..=5 {
        let multiplier = log_sgd.advance(&config, 10.0, f64::INFINITY).unwrap_or(1.0);
        pi.step(exact(10.0), 0.0);
        println!("| {update} | {multiplier:.3e} | {:.3} |", pi.multiplier());
    }
    println!("\nUpdates until λ has doubled from 0.01, at a steady excess:\n");
    println!("| excess | `log_sgd` | `pi` |");
    println!("|---|---|---|");
    for excess in [0.5, 1.0, 2.0] {
        let doubling = |controller: ControllerConfig| {
            let config = ConstraintConfig { controller, initial_multiplier: 0.01, ..ConstraintConfig::default() };
            let mut controller = Controller::new(&config);
            (1..)
                .find(|_: &u32| {
                    controller.step(exact(excess), 0.0);
                    controller.multiplier() >= 0.02
                })
                .map_or(0, |updates| updates)
        };
        let log_sgd = doubling(ControllerConfig::LogSgd(config));
        println!("| {excess} | {log_sgd} | {} |", doubling(ControllerConfig::default()));
    }
}

fn exact(mean: f64) -> Option<CostEstimate> {
    Some(CostEstimate { mean, standard_error: 0.0, effective_samples: 128.0, margin: 0.0 })
}

/// One simulated response.
struct Response {
    cost: f64,
    started: u64,
    scored: u64,
    consumed: u64,
    rejected: bool,
}

/// How far the mean cost falls with each policy version: the exponential tilt of the cost's distribution.
const DRIFT: f64 = 0.02;
const VERSIONS: u64 = 400;
const RESPONSES: usize = 128;

/// Costs are normal with variance 1 around −`DRIFT`·version. A response's log-length has correlation `correlation` with
/// its cost; 128 tokens are generated in a version's time, a finished response waits up to one version more, and each
/// token has one chance in 2,000 to exceed the log-ratio limit.
fn responses(correlation: f64, rng: &mut ChaCha8Rng) -> Vec<Response> {
    let mut all = Vec::new();
    for started in 0..VERSIONS {
        for _ in 0..RESPONSES {
            let deviation = normal(rng);
            let size = correlation * deviation + (1.0 - correlation * correlation).sqrt() * normal(rng);
            let length = 64.0 * (0.5 * size).exp();
            let scored = started + (length / 128.0 + rng.random::<f64>()) as u64;
            all.push(Response {
                cost: deviation - DRIFT * started as f64,
                started,
                scored,
                consumed: scored + u64::from(rng.random::<bool>()),
                rejected: rng.random::<f64>() < 1.0 - (1.0 - 1.0 / 2000.0_f64).powf(length),
            });
        }
    }
    all
}

/// When and what an estimator is shown.
#[derive(Clone, Copy)]
enum Shown {
    /// Every response when it is scored.
    AllScored,
    /// At consumption, those at most one version behind.
    NotStale,
    /// At consumption, those at most one version behind and not rejected.
    Survivors,
}

impl Shown {
    fn at(self, response: &Response) -> Option<u64> {
        let fresh = response.consumed - response.started <= 1;
        match self {
            Self::AllScored => Some(response.scored),
            Self::NotStale => fresh.then_some(response.consumed),
            Self::Survivors => (fresh && !response.rejected).then_some(response.consumed),
        }
    }
}

/// The version that a cost is filed under.
#[derive(Clone, Copy)]
enum Dated {
    /// The one that was current when it was scored.
    Scored,
    /// The one that its first token was sampled under.
    OldestToken,
}

fn estimators() {
    println!("\n### Estimators\n");
    println!(
        "Bias (estimate − true mean cost of the current policy), root mean square error, share of versions held:\n"
    );
    println!("| estimator | correlation | every scored cost | stale dropped | stale dropped and rejected |");
    println!("|---|---|---|---|---|");
    let fresh = EstimatorConfig::Fresh(FreshConfig::default());
    let kinds = [
        ("`fresh`", Dated::Scored, fresh.clone()),
        ("`fresh`, lag of the oldest token", Dated::OldestToken, fresh),
        ("`upper`", Dated::Scored, EstimatorConfig::Upper(UpperConfig::default())),
        ("`window`", Dated::Scored, EstimatorConfig::Window(WindowConfig::default())),
    ];
    for (name, dated, config) in &kinds {
        for correlation in [0.0, 0.6] {
            let cells = [Shown::AllScored, Shown::NotStale, Shown::Survivors].map(|shown| {
                let (bias, error, held) = judge(config, *dated, correlation, shown);
                format!("{bias:+.3}, {error:.3}, {:.0} %", 100.0 * held)
            });
            println!("| {name} | {correlation} | {} |", cells.join(" | "));
        }
    }
}

/// Bias and root mean square error over all versions with an estimate, and the share of versions without.
fn judge(config: &EstimatorConfig, dated: Dated, correlation: f64, shown: Shown) -> (f64, f64, f64) {
    const WARM_UP: u64 = 10;
    let all = responses(correlation, &mut ChaCha8Rng::seed_from_u64(7));
    let mut arrivals: Vec<Vec<&Response>> = (0..VERSIONS).map(|_| Vec::new()).collect();
    for response in &all {
        let slot = shown.at(response).and_then(|version| usize::try_from(version).ok());
        if let Some(arrivals) = slot.and_then(|slot| arrivals.get_mut(slot)) {
            arrivals.push(response);
        }
    }
    let mut estimator = CostEstimator::new(config);
    let (mut errors, mut held) = (Vec::new(), 0_u64);
    for (version, arrived) in (0..).zip(&arrivals) {
        for response in arrived {
            estimator.observe(CostSample {
                cost: response.cost,
                version: PolicyVersion(match dated {
                    Dated::Scored => response.scored,
                    Dated::OldestToken => response.started,
                }),
            });
        }
        if version < WARM_UP {
            continue;
        }
        match estimator.estimate(PolicyVersion(version)) {
            Some(estimate) => errors.push(estimate.mean + estimate.margin + DRIFT * version as f64),
            None => held += 1,
        }
    }
    let count = errors.len() as f64;
    let bias = errors.iter().sum::<f64>() / count;
    let error = (errors.iter().map(|error| error * error).sum::<f64>() / count).sqrt();
    (bias, error, held as f64 / (VERSIONS - WARM_UP) as f64)
}

/// A standard normal number, by Box and Muller.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}
