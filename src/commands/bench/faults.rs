//! `saddle bench faults`: panics and hangs at random in all stages of a running system, over engines that only take time.
//! Shown is how long their successors take to work again, and that no rollout is lost or trained on twice.

use crate::cli::FaultsArgs;
use crate::commands::bench::median;
use crate::failure::Failure;
use crate::table::{print, table};
use saddle_actors::fake::{FakeEngines, Times};
use saddle_actors::faults::{Faults, Recovery};
use saddle_actors::{Plan, Role, System, Update, follow};
use saddle_flow::Outcome;
use saddle_telemetry::Telemetry;
use saddle_training::config::{EdgesSection, PlacementSection, ScheduleSection, StagePlacement, SupervisionSection};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// For the run, and for its end.
const PATIENCE: Duration = Duration::from_secs(600);
/// After so long without a sign of life a stage counts as hung.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Longer than the heartbeat and the supervisor's next look.
const HANG: Duration = Duration::from_secs(3);
/// Source, generator, three scorers, join, multiplier, learner.
const ROLES: u64 = 8;
const GENERATORS: usize = 2;
const BATCH: usize = 8;
/// Updates: far more than the faults take.
const ENDLESS: u64 = 1 << 40;

#[derive(Serialize)]
struct Measured {
    stages: Vec<Row>,
    updates: usize,
    rollouts_trained_on: u64,
    /// Ended without being trained on, or never ended. The drain that ends the run gives up what makes no whole batch: that
    /// is not among them.
    rollouts_lost: u64,
    rollouts_trained_on_twice: usize,
    restarts: u64,
}

/// What befell the stages of one role.
#[derive(Serialize)]
struct Row {
    role: String,
    panics: usize,
    /// From the fault to the next step in the stage's place.
    panic_recovery_seconds: Spread,
    hangs: usize,
    /// The same; the heartbeat is part of it.
    hang_recovery_seconds: Spread,
}

#[derive(Serialize)]
struct Spread {
    median: Option<f64>,
    longest: Option<f64>,
}

pub(in crate::commands) fn faults(args: &FaultsArgs) -> Result<(), Failure> {
    let of_each_role = args.faults.div_ceil(ROLES);
    let plan = plan();
    let (mishap, log) = Faults { seed: args.seed, of_each_role, chance: 0.2, hang: HANG }.start();
    let telemetry = Arc::new(Telemetry::new(env!("CARGO_PKG_VERSION")).map_err(Failure::run)?);
    let millisecond = Duration::from_millis(1);
    let times = Times { slots: 8, tokens: (1, 32), decode_step: millisecond, score: millisecond, update: millisecond };
    let engines = FakeEngines::failing(times, mishap);
    let system = System::start(plan.clone(), engines, Vec::new(), telemetry).map_err(Failure::run)?;
    let (mut batches, mut lost) = (Vec::new(), 0);
    follow(&system, Instant::now() + PATIENCE, |system, update| {
        batches.push(update);
        // All faults have befallen, and all stages have been seen again.
        let recovered = log.lock().unwrap_or_else(PoisonError::into_inner).recoveries().len() as u64;
        if recovered == ROLES * of_each_role && !system.is_draining() {
            lost = system.counts().lost();
            system.drain();
        }
    })
    .map_err(Failure::run)?;
    let report = system.observe().map_err(Failure::run)?;
    let counts = system.finish(PATIENCE).counts;
    let log = log.lock().unwrap_or_else(PoisonError::into_inner);
    show(
        args.json,
        &Measured {
            stages: rows(&plan, log.recoveries()),
            updates: batches.len(),
            rollouts_trained_on: counts.ended(Outcome::Trained),
            rollouts_lost: lost + counts.open,
            rollouts_trained_on_twice: repeated(&batches),
            restarts: report.restarts,
        },
    )
}

fn plan() -> Plan {
    Plan {
        schedule: ScheduleSection { staleness: 2, ..ScheduleSection::default() },
        placement: PlacementSection {
            generator: StagePlacement { count: GENERATORS, ..StagePlacement::default() },
            ..PlacementSection::default()
        },
        edges: EdgesSection { flush_seconds: 0.0, ..EdgesSection::default() },
        supervision: SupervisionSection {
            heartbeat_seconds: HEARTBEAT.as_secs_f64(),
            // Each fault is the first of its window, as it is where faults are rare, and waits `backoff_seconds`.
            restarts: 1,
            window_seconds: 1e-6,
            attempts: u32::MAX,
            ..SupervisionSection::default()
        },
        constraints: vec!["cost".to_owned()],
        updates: ENDLESS,
        batch_rollouts: BATCH,
        minimum_rollouts: 1,
        score_tokens: 8192,
        evaluate_every_updates: 0,
    }
}

/// Rollouts in more than one batch, or twice in one.
fn repeated(batches: &[Update]) -> usize {
    let trained = || batches.iter().flat_map(|update| update.batch.iter()).map(|each| each.rollout.prompt.ordinal);
    trained().count() - trained().collect::<BTreeSet<_>>().len()
}

fn rows(plan: &Plan, recoveries: &[Recovery]) -> Vec<Row> {
    let mut seconds: BTreeMap<Role, [Vec<f64>; 2]> = BTreeMap::new();
    for Recovery { role, hung, after } in recoveries {
        let [panics, hangs] = seconds.entry(*role).or_default();
        if *hung { hangs } else { panics }.push(after.as_secs_f64());
    }
    let row = |(role, [panics, hangs]): (Role, [Vec<f64>; 2])| Row {
        role: plan.name(role).to_string(),
        panics: panics.len(),
        panic_recovery_seconds: Spread::of(panics),
        hangs: hangs.len(),
        hang_recovery_seconds: Spread::of(hangs),
    };
    seconds.into_iter().map(row).collect()
}

impl Spread {
    fn of(seconds: Vec<f64>) -> Self {
        let longest = seconds.iter().copied().reduce(f64::max);
        Self { median: longest.map(|_| median(seconds)), longest }
    }

    fn cells(&self) -> [String; 2] {
        [self.median, self.longest].map(|value| value.map_or_else(|| "–".to_owned(), |seconds| format!("{seconds:.3}")))
    }
}

fn show(json: bool, measured: &Measured) -> Result<(), Failure> {
    if json {
        print(serde_json::to_string(measured).map_err(Failure::run)?);
        return Ok(());
    }
    let heading = ["stage", "panics", "recovery, s: median", "longest", "hangs", "recovery, s: median", "longest"];
    let cells = measured.stages.iter().map(|row| {
        let mut cells = vec![row.role.clone(), row.panics.to_string()];
        cells.extend(row.panic_recovery_seconds.cells());
        cells.push(row.hangs.to_string());
        cells.extend(row.hang_recovery_seconds.cells());
        cells
    });
    print(table(&heading, &cells.collect::<Vec<_>>()));
    let Measured { updates, rollouts_trained_on, rollouts_lost, rollouts_trained_on_twice, restarts, .. } = measured;
    print(format!(
        "{updates} updates on {rollouts_trained_on} rollouts, of which {rollouts_trained_on_twice} twice; {rollouts_lost} lost; \
         {restarts} restarts"
    ));
    Ok(())
}
