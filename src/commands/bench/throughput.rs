//! `saddle bench throughput`: how well the system keeps generators, scorers and the learner busy, over engines that only
//! take time.
//!
//! With n generators of g rollouts a second, m scorers of s in each lane and a learner of t, no schedule does better than
//! min(n · g, m · s, t). A second measurement takes all times as zero: what is left is the system's own cost of a rollout.

use crate::cli::ThroughputArgs;
use crate::failure::Failure;
use crate::table::{print, table};
use saddle_actors::fake::{FakeEngines, Times};
use saddle_actors::{Plan, System, follow};
use saddle_report::{ThroughputLine, ThroughputPoint};
use saddle_telemetry::Telemetry;
use saddle_training::config::{EdgesSection, PlacementSection, ScheduleSection, StagePlacement, SupervisionSection};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Updates before the clock starts.
const WARM_UP_UPDATES: u64 = 2;
/// For one measurement.
const PATIENCE: Duration = Duration::from_secs(600);
/// Longest and shortest response are this share of the mean from it.
const LENGTH_SPREAD: f64 = 0.5;

/// How many of what.
#[derive(Clone, Copy, Serialize)]
struct Counts {
    generators: usize,
    /// Of each lane.
    scorers: usize,
    staleness: usize,
}

/// One line of the table.
#[derive(Serialize)]
struct Measured {
    #[serde(flatten)]
    counts: Counts,
    rollouts_per_second: f64,
    ideal_rollouts_per_second: f64,
    of_ideal: f64,
    overhead_microseconds: f64,
}

pub(in crate::commands) fn throughput(args: &ThroughputArgs) -> Result<(), Failure> {
    require_in_range(args)?;
    let times = times(args);
    let at_once = Times { decode_step: Duration::ZERO, score: Duration::ZERO, update: Duration::ZERO, ..times.clone() };
    let mut rows = Vec::new();
    for &staleness in &args.staleness {
        for &scorers in &args.scorers {
            for &generators in &args.generators {
                let counts = Counts { generators, scorers, staleness };
                let rollouts_per_second = measure(args, counts, &times)?;
                let ideal_rollouts_per_second = ideal(args, counts, &times);
                rows.push(Measured {
                    counts,
                    rollouts_per_second,
                    ideal_rollouts_per_second,
                    of_ideal: rollouts_per_second / ideal_rollouts_per_second,
                    overhead_microseconds: 1e6 / measure(args, counts, &at_once)?,
                });
            }
        }
    }
    if let Some(path) = &args.plot {
        std::fs::write(path, saddle_report::throughput(&lines(&rows)))
            .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    }
    show(args.json, &rows)
}

fn require_in_range(args: &ThroughputArgs) -> Result<(), Failure> {
    let all = |counts: &[usize], largest: usize| {
        !counts.is_empty() && counts.iter().all(|count| (1..=largest).contains(count))
    };
    for (option, holds) in [
        ("--generators", all(&args.generators, 256)),
        ("--scorers", all(&args.scorers, 256)),
        ("--updates", args.updates > 0),
        ("--batch", args.batch > 0),
        ("--staleness", all(&args.staleness, 64)),
        ("--slots", args.slots > 0),
        ("--tokens", args.tokens > 1),
        ("--step-milliseconds, --update-milliseconds", args.step_milliseconds > 0.0 && args.update_milliseconds > 0.0),
        ("--score-milliseconds", args.score_milliseconds >= 0.0),
    ] {
        if !holds {
            return Err(Failure::usage(format!("{option}: out of range; --help says what it is")));
        }
    }
    Ok(())
}

fn times(args: &ThroughputArgs) -> Times {
    let spread = (args.tokens as f64 * LENGTH_SPREAD) as usize;
    let milliseconds = |value: f64| Duration::from_secs_f64(value.clamp(0.0, 1e6) / 1e3);
    Times {
        slots: args.slots,
        tokens: (args.tokens - spread, args.tokens + spread),
        decode_step: milliseconds(args.step_milliseconds),
        score: milliseconds(args.score_milliseconds),
        update: milliseconds(args.update_milliseconds),
    }
}

/// Rollouts a second that no schedule exceeds: min(n · g, m · s, t).
fn ideal(args: &ThroughputArgs, counts: Counts, times: &Times) -> f64 {
    let generator = args.slots as f64 / (args.tokens as f64 * times.decode_step.as_secs_f64());
    let scorer = 1.0 / times.score.as_secs_f64();
    let learner = args.batch as f64 / times.update.as_secs_f64();
    (counts.generators as f64 * generator).min(counts.scorers as f64 * scorer).min(learner)
}

fn show(json: bool, rows: &[Measured]) -> Result<(), Failure> {
    if json {
        print(serde_json::to_string(rows).map_err(Failure::run)?);
        return Ok(());
    }
    let heading = ["generators", "scorers", "staleness", "rollouts/s", "ideal", "of ideal", "overhead, µs a rollout"];
    let cells = rows.iter().map(|row| {
        vec![
            row.counts.generators.to_string(),
            row.counts.scorers.to_string(),
            row.counts.staleness.to_string(),
            format!("{:.1}", row.rollouts_per_second),
            format!("{:.1}", row.ideal_rollouts_per_second),
            format!("{:.3}", row.of_ideal),
            format!("{:.1}", row.overhead_microseconds),
        ]
    });
    print(table(&heading, &cells.collect::<Vec<_>>()));
    Ok(())
}

/// A line for each number of scorers and each staleness.
fn lines(rows: &[Measured]) -> Vec<ThroughputLine> {
    let mut lines: Vec<ThroughputLine> = Vec::new();
    for row in rows {
        let Counts { generators, scorers, staleness } = row.counts;
        let name = format!("{scorers} scorers a lane, η = {staleness}");
        if lines.last().is_none_or(|line| line.name != name) {
            lines.push(ThroughputLine { name, points: Vec::new() });
        }
        if let Some(line) = lines.last_mut() {
            let (measured, ideal) = (row.rollouts_per_second, row.ideal_rollouts_per_second);
            line.points.push(ThroughputPoint { generators, measured, ideal });
        }
    }
    lines
}

/// Rollouts trained on in a second.
fn measure(args: &ThroughputArgs, counts: Counts, times: &Times) -> Result<f64, Failure> {
    let last = WARM_UP_UPDATES + args.updates;
    let placed = |count| StagePlacement { count, ..StagePlacement::default() };
    let plan = Plan {
        schedule: ScheduleSection { staleness: counts.staleness, ..ScheduleSection::default() },
        placement: PlacementSection {
            generator: placed(counts.generators),
            reward: placed(counts.scorers),
            cost: placed(counts.scorers),
            reference: placed(counts.scorers),
            ..PlacementSection::default()
        },
        edges: EdgesSection { flush_seconds: 0.0, ..EdgesSection::default() },
        supervision: SupervisionSection::default(),
        constraints: vec!["cost".to_owned()],
        // The clock stops before the pipeline runs dry.
        updates: last + counts.staleness as u64 + 2,
        batch_rollouts: args.batch,
        minimum_rollouts: 1,
        score_tokens: 8192,
        evaluate_every_updates: 0,
    };
    let telemetry = Arc::new(Telemetry::new(env!("CARGO_PKG_VERSION")).map_err(Failure::run)?);
    let recorded = Arc::clone(&telemetry);
    let system = System::start(plan, FakeEngines::new(times.clone()), Vec::new(), telemetry).map_err(Failure::run)?;
    system.handle().spawn(async move { recorded.upkeep().await });
    let (mut start, mut seconds) = (Instant::now(), None);
    let outcome = follow(&system, Instant::now() + PATIENCE, |system, update| {
        if update.version.0 == WARM_UP_UPDATES {
            start = Instant::now();
        } else if update.version.0 == last {
            seconds = Some(start.elapsed().as_secs_f64());
            system.stop("what there is to measure has been measured");
        }
    });
    // Nothing is left to wait for but threads that leave.
    let _ = system.finish(PATIENCE);
    match (seconds, outcome) {
        (Some(seconds), _) => Ok((args.updates * args.batch as u64) as f64 / seconds),
        (None, Err(reason)) => Err(Failure::run(reason)),
        (None, Ok(())) => Err(Failure::run("the run ended before its last update")),
    }
}
