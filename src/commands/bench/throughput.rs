//! `saddle bench throughput`: how well the system keeps generators and the learner busy, over engines that only take time.
//!
//! With n generators of g rollouts a second and a learner of t, no schedule does better than min(n · g, t). A second
//! measurement takes all times as zero: what is left is the system's own cost of a rollout.

use crate::cli::ThroughputArgs;
use crate::failure::Failure;
use crate::table::{print, table};
use saddle_actors::fake::{FakeEngines, Times};
use saddle_actors::{Plan, System, follow};
use saddle_telemetry::Telemetry;
use saddle_training::config::{EdgesSection, PlacementSection, ScheduleSection, StagePlacement, SupervisionSection};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Updates before the clock starts.
const WARM_UP_UPDATES: u64 = 2;
/// For one measurement.
const PATIENCE: Duration = Duration::from_secs(600);
/// Reward, one cost, reference.
const LANES: usize = 3;
/// Longest and shortest response are this share of the mean from it.
const LENGTH_SPREAD: f64 = 0.5;

/// One line of the table.
#[derive(Serialize)]
struct Measured {
    generators: usize,
    rollouts_per_second: f64,
    ideal_rollouts_per_second: f64,
    of_ideal: f64,
    overhead_microseconds: f64,
}

pub(in crate::commands) fn throughput(args: &ThroughputArgs) -> Result<(), Failure> {
    for (option, holds) in [
        ("--generators", !args.generators.is_empty() && args.generators.iter().all(|count| (1..=256).contains(count))),
        ("--updates", args.updates > 0),
        ("--batch", args.batch > 0),
        ("--staleness", (1..=64).contains(&args.staleness)),
        ("--slots", args.slots > 0),
        ("--tokens", args.tokens > 1),
        ("--step-milliseconds, --update-milliseconds", args.step_milliseconds > 0.0 && args.update_milliseconds > 0.0),
    ] {
        if !holds {
            return Err(Failure::usage(format!("{option}: out of range; --help says what it is")));
        }
    }
    let spread = (args.tokens as f64 * LENGTH_SPREAD) as usize;
    let milliseconds = |value: f64| Duration::from_secs_f64(value.clamp(0.0, 1e6) / 1e3);
    let times = Times {
        slots: args.slots,
        tokens: (args.tokens - spread, args.tokens + spread),
        decode_step: milliseconds(args.step_milliseconds),
        score: Duration::ZERO,
        update: milliseconds(args.update_milliseconds),
        lanes: LANES,
    };
    let at_once = Times { decode_step: Duration::ZERO, update: Duration::ZERO, ..times.clone() };
    let generator = args.slots as f64 / (args.tokens as f64 * times.decode_step.as_secs_f64());
    let learner = args.batch as f64 / times.update.as_secs_f64();
    let mut rows = Vec::new();
    for &generators in &args.generators {
        let rollouts_per_second = measure(args, generators, &times)?;
        let ideal_rollouts_per_second = learner.min(generators as f64 * generator);
        rows.push(Measured {
            generators,
            rollouts_per_second,
            ideal_rollouts_per_second,
            of_ideal: rollouts_per_second / ideal_rollouts_per_second,
            overhead_microseconds: 1e6 / measure(args, generators, &at_once)?,
        });
    }
    if args.json {
        print(serde_json::to_string(&rows).map_err(Failure::run)?);
    } else {
        let heading = ["generators", "rollouts/s", "ideal", "of ideal", "overhead, µs a rollout"];
        let cells = rows.iter().map(|row| {
            vec![
                row.generators.to_string(),
                format!("{:.1}", row.rollouts_per_second),
                format!("{:.1}", row.ideal_rollouts_per_second),
                format!("{:.3}", row.of_ideal),
                format!("{:.1}", row.overhead_microseconds),
            ]
        });
        print(table(&heading, &cells.collect::<Vec<_>>()));
    }
    Ok(())
}

/// Rollouts trained on in a second.
fn measure(args: &ThroughputArgs, generators: usize, times: &Times) -> Result<f64, Failure> {
    let plan = Plan {
        schedule: ScheduleSection { staleness: args.staleness, ..ScheduleSection::default() },
        placement: PlacementSection {
            generator: StagePlacement { count: generators, ..StagePlacement::default() },
            ..PlacementSection::default()
        },
        edges: EdgesSection { flush_seconds: 0.0, ..EdgesSection::default() },
        supervision: SupervisionSection::default(),
        constraints: vec!["cost".to_owned()],
        updates: WARM_UP_UPDATES + args.updates,
        batch_rollouts: args.batch,
        minimum_rollouts: 1,
        score_tokens: 8192,
    };
    let telemetry = Arc::new(Telemetry::new(env!("CARGO_PKG_VERSION")).map_err(Failure::run)?);
    let recorded = Arc::clone(&telemetry);
    let system = System::start(plan, FakeEngines::new(times.clone()), Vec::new(), telemetry).map_err(Failure::run)?;
    system.handle().spawn(async move { recorded.upkeep().await });
    let (mut start, mut end) = (None, Instant::now());
    let outcome = follow(&system, Instant::now() + PATIENCE, |_, update| {
        end = Instant::now();
        if update.version.0 == WARM_UP_UPDATES {
            start = Some(end);
        }
    });
    // Nothing is left to wait for but threads that leave.
    let _ = system.finish(PATIENCE);
    outcome.map_err(Failure::run)?;
    let seconds = start.map_or(0.0, |start| end.saturating_duration_since(start).as_secs_f64());
    Ok((args.updates * args.batch as u64) as f64 / seconds)
}
