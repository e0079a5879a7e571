//! The whole system over engines that only take time: failures, scaling, drains and odd timing. Whatever happens, the
//! learner gets its rollouts, none twice, none too old, and everything is accounted for.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use proptest::prelude::*;
use saddle_actors::fake::{FakeEngines, FakeLearner, Mishap, Times};
use saddle_actors::faults::Faults;
use saddle_actors::{Cause, Event, Lane, Plan, Remains, Report, Role, System, Update, follow};
use saddle_algorithms::dual::ConstraintConfig;
use saddle_core::PolicyVersion;
use saddle_flow::Outcome;
use saddle_telemetry::Telemetry;
use saddle_training::config::{EdgesSection, PlacementSection, ScheduleSection, SupervisionSection};
use saddle_training::{Dual, UpdateMetrics};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What makes a deadlock fail instead of hang.
const PATIENCE: Duration = Duration::from_secs(120);

fn plan(staleness: usize, batch_rollouts: usize, updates: u64) -> Plan {
    Plan {
        schedule: ScheduleSection { staleness, ..ScheduleSection::default() },
        placement: PlacementSection::default(),
        edges: EdgesSection {
            patience_seconds: PATIENCE.as_secs_f64(),
            flush_seconds: 0.001,
            ..EdgesSection::default()
        },
        supervision: SupervisionSection {
            restarts: 1000,
            backoff_seconds: 0.001,
            attempts: 1000,
            ..SupervisionSection::default()
        },
        constraints: vec!["harm".to_owned()],
        updates,
        batch_rollouts,
        minimum_rollouts: 1,
        score_tokens: 64,
        evaluate_every_updates: 0,
    }
}

fn times() -> Times {
    let quick = Duration::from_micros(100);
    Times { slots: 4, tokens: (1, 6), decode_step: quick, score: quick, update: quick }
}

fn start(plan: &Plan, engines: FakeEngines) -> System<FakeEngines> {
    let duals = vec![Dual::new("harm", &ConstraintConfig::default())];
    System::start(plan.clone(), engines, duals, Arc::new(Telemetry::new("test").unwrap())).unwrap()
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// Runs to the end: the updates, what the supervisor saw, and what is left.
fn run(system: System<FakeEngines>) -> (Vec<Update>, Report, Remains<FakeLearner, ()>) {
    let mut updates = Vec::new();
    follow(&system, deadline(), |_, update| updates.push(update)).unwrap();
    let report = system.observe().unwrap();
    (updates, report, system.finish(PATIENCE))
}

fn ordinals(update: &Update) -> Vec<u64> {
    update.batch.iter().map(|each| each.rollout.prompt.ordinal.0).collect()
}

/// Every update was made, from rollouts that are trained on once and are young enough; nothing is under way any more.
fn check(plan: &Plan, updates: &[Update], remains: &Remains<FakeLearner, ()>) {
    let versions: Vec<u64> = updates.iter().map(|update| update.version.0).collect();
    assert_eq!(versions, (1..=plan.updates).collect::<Vec<_>>());
    let mut trained: Vec<u64> = updates.iter().flat_map(ordinals).collect();
    assert_eq!(trained.len() as u64, plan.updates * plan.batch_rollouts as u64);
    trained.sort_unstable();
    trained.dedup();
    assert_eq!(trained.len() as u64, plan.updates * plan.batch_rollouts as u64, "a rollout was trained on twice");
    for update in updates {
        let before = update.version.0 - 1;
        let oldest = update.batch.iter().map(|each| each.rollout.oldest_version().unwrap().0).min().unwrap();
        assert!(before - oldest <= plan.schedule.staleness as u64, "update {before} took tokens of {oldest}");
    }
    assert_eq!(remains.counts.ended(Outcome::Trained), trained.len() as u64);
    assert!(remains.drained, "{:?}", remains.counts);
}

#[test]
fn a_run_makes_its_updates_and_leaves_nothing_behind() {
    for staleness in [0, 1, 3] {
        let mut plan = plan(staleness, 8, 6);
        if staleness > 0 {
            plan.placement.generator.count = 3;
            plan.placement.reward.count = 2;
        }
        let (updates, report, remains) = run(start(&plan, FakeEngines::new(times())));
        check(&plan, &updates, &remains);
        assert_eq!((report.restarts, remains.counts.lost(), remains.learner.is_some()), (0, 0, true));
        for update in updates {
            assert_eq!((update.metrics, update.constraints[0].constraint.as_str()), (UpdateMetrics::default(), "harm"));
        }
    }
}

/// A program that looks all the time sees every moment between the last weights and the word of them.
#[test]
fn the_last_update_is_told_before_the_run_is_over() {
    for _ in 0..50 {
        let plan = plan(1, 4, 2);
        let system = start(&plan, FakeEngines::new(times()));
        let (mut updates, end) = (Vec::new(), deadline());
        loop {
            match system.next(Duration::ZERO) {
                Event::Updated(update) => updates.push(*update),
                Event::Over => break,
                other => assert!(matches!(other, Event::Nothing) && Instant::now() < end, "{other:?}"),
            }
        }
        check(&plan, &updates, &system.finish(PATIENCE));
    }
}

#[test]
fn without_staleness_every_update_takes_its_own_prompts_in_order() {
    let plan = plan(0, 5, 7);
    let (updates, ..) = run(start(&plan, FakeEngines::new(times())));
    for (batch, update) in updates.iter().enumerate() {
        let first = 5 * batch as u64;
        assert_eq!(ordinals(update), (first..first + 5).collect::<Vec<_>>());
    }
}

const HEARTBEAT: Duration = Duration::from_millis(200);

/// Faults of all eight roles, some of them hangs.
fn faults(of_each_role: u64, chance: f64) -> Faults {
    Faults { seed: 1, of_each_role, chance, hang: 4 * HEARTBEAT }
}

#[test]
fn under_a_hundred_panics_and_hangs_of_all_stages_no_rollout_is_lost_or_trained_on_twice() {
    let mut plan = plan(2, 4, 60);
    plan.supervision.heartbeat_seconds = HEARTBEAT.as_secs_f64();
    plan.placement.generator.count = 2;
    let (mishap, log) = faults(13, 0.5).start();
    let (updates, report, remains) = run(start(&plan, FakeEngines::failing(times(), mishap)));
    check(&plan, &updates, &remains);
    assert_eq!(remains.counts.lost(), 0, "{:?}", remains.counts);
    let counts: Vec<u64> = log.lock().unwrap().counts().values().copied().collect();
    assert_eq!(counts, [13; 8], "faults of each role");
    // A stage that sleeps through the end of the run, or wakes just in time, is not replaced.
    let (hangs, others): (Vec<_>, Vec<_>) = report.failures.iter().partition(|failure| failure.cause == Cause::Hang);
    assert!(others.iter().any(|failure| failure.reason.contains("panicked: a fault at random")), "{others:?}");
    assert!(hangs.iter().any(|failure| failure.reason.contains("no sign of life")), "{hangs:?}");
    assert_eq!(report.restarts, report.failures.len() as u64);
    for role in ["source", "generator", "reward", "cost_harm", "reference", "join", "multiplier", "learner"] {
        let hit = report.failures.iter().any(|failure| failure.stage.starts_with(role));
        assert!(hit, "{role} had no mishap that shows: {:?}", report.failures);
    }
}

#[test]
fn without_staleness_failures_do_not_change_which_prompts_an_update_takes() {
    let mut plan = plan(0, 4, 12);
    plan.supervision.heartbeat_seconds = HEARTBEAT.as_secs_f64();
    let (mishap, _) = faults(3, 0.2).start();
    let (updates, _, remains) = run(start(&plan, FakeEngines::failing(times(), mishap)));
    check(&plan, &updates, &remains);
    for (batch, update) in updates.iter().enumerate() {
        let first = 4 * batch as u64;
        assert_eq!(ordinals(update), (first..first + 4).collect::<Vec<_>>());
    }
}

#[test]
fn a_stage_that_keeps_failing_ends_the_run_with_its_reason() {
    let mut plan = plan(1, 4, 10);
    plan.supervision.restarts = 3;
    let mishap: Mishap = Arc::new(|role, _| {
        if role == Role::Scorer(Lane::Cost(0)) {
            resume_unwind(Box::new("out of memory"));
        }
    });
    let system = start(&plan, FakeEngines::failing(times(), mishap));
    let reason = follow(&system, deadline(), |_, _| ()).unwrap_err();
    let expected = "cost_harm-0 failed more than 3 times within 600 s, the last time: panicked: out of memory";
    assert_eq!(&*reason, expected);
    assert_eq!(system.finish(PATIENCE).counts.ended(Outcome::Trained), 0);
}

/// Holds a stage back until it is opened.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn wait(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

#[test]
fn behind_a_learner_that_stands_still_as_many_prompts_are_under_way_as_there_are_credits() {
    for (staleness, batch) in [(0, 6), (1, 4), (3, 5)] {
        let (plan, gate) = (plan(staleness, batch, 8), Arc::new(Gate::default()));
        let closed = Arc::clone(&gate);
        let mishap: Mishap = Arc::new(move |role, _| {
            if role == Role::Learner {
                closed.wait();
            }
        });
        let system = start(&plan, FakeEngines::failing(times(), mishap));
        let joined = |system: &System<FakeEngines>| {
            let edge = system.edges().iter().find(|edge| edge.name() == "scorers→join").unwrap();
            edge.read().received
        };
        let end = deadline();
        // Three lanes, and with η = 0 one group for all rollouts.
        while system.credits().0 > 0 || joined(&system) == 0 {
            assert!(Instant::now() < end, "the pipeline stands still");
            assert!(matches!(system.next(Duration::from_millis(5)), Event::Nothing));
        }
        let counts = system.counts();
        assert_eq!((counts.drawn, counts.open), (system.credits().1 as u64, ((staleness + 1) * batch) as u64));
        gate.open();
        let (updates, _, remains) = run(system);
        check(&plan, &updates, &remains);
    }
}

#[test]
fn a_paused_stage_stands_still_until_it_is_resumed() {
    let plan = plan(1, 4, 30);
    let system = start(&plan, FakeEngines::new(times()));
    system.remote().pause(Role::Generator, true).unwrap();
    let end = deadline();
    while system
        .observe()
        .unwrap()
        .stages
        .iter()
        .any(|stage| stage.role == Role::Generator && stage.activity != saddle_flow::Activity::Sync)
    {
        assert!(Instant::now() < end, "the generator goes on");
        drop(system.next(Duration::from_millis(5)));
    }
    system.remote().pause(Role::Generator, false).unwrap();
    follow(&system, deadline(), |_, _| ()).unwrap();
    assert_eq!(system.version().0, 30);
}

#[test]
fn a_drain_ends_what_is_under_way_and_trains_whole_batches_only() {
    for staleness in [0, 2] {
        let plan = plan(staleness, 4, 1_000_000);
        let system = start(&plan, FakeEngines::new(times()));
        let mut updates = Vec::new();
        follow(&system, deadline(), |system, update| {
            updates.push(update);
            if updates.len() == 5 {
                system.drain();
            }
        })
        .unwrap();
        let remains = system.finish(PATIENCE);
        assert!(remains.drained, "{:?}", remains.counts);
        assert_eq!(remains.counts.ended(Outcome::Trained), 4 * updates.len() as u64);
        assert!(remains.learner.is_some());
        let under_way = remains.counts.ended(Outcome::Failed);
        assert!(under_way < 4 + 4 * staleness as u64, "{under_way} rollouts were given up");
    }
}

#[test]
fn every_version_that_is_due_is_examined_once_in_order_beside_an_evaluator_that_fails() {
    let failures = AtomicU64::new(0);
    let mishap: Mishap = Arc::new(move |role, _| {
        if role == Role::Evaluator && failures.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            resume_unwind(Box::new("an evaluator's step"));
        }
    });
    let plan = Plan { evaluate_every_updates: 3, ..plan(1, 4, 20) };
    let engines = FakeEngines::failing(times(), mishap);
    let system = start(&plan, engines.clone());
    let end = deadline();
    let mut updates = Vec::new();
    follow(&system, end, |_, update| updates.push(update)).unwrap();
    while engines.evaluated().len() < 6 {
        assert!(Instant::now() < end, "only {:?}", engines.evaluated());
        std::thread::yield_now();
    }
    let remains = system.finish(PATIENCE);
    check(&plan, &updates, &remains);
    assert_eq!(engines.evaluated(), [3, 6, 9, 12, 15, 18].map(PolicyVersion), "not the last: it is the program's");
}

#[test]
fn what_cannot_be_scaled_is_refused_with_the_reason() {
    let system = start(&plan(1, 4, 1_000_000), FakeEngines::new(times()));
    assert_eq!(system.scale(Role::Learner, 2).unwrap_err().to_string(), "there is one learner only");
    assert!(system.scale(Role::Generator, 0).unwrap_err().to_string().contains("must be in 1..="));
    let lockstep = start(&plan(0, 4, 1_000_000), FakeEngines::new(times()));
    assert!(lockstep.scale(Role::Generator, 2).unwrap_err().to_string().contains("staleness 0"));
}

#[test]
fn telemetry_shows_the_run() {
    let plan = plan(1, 4, 5);
    let telemetry = Arc::new(Telemetry::new("test").unwrap());
    let duals = vec![Dual::new("harm", &ConstraintConfig::default())];
    let system = System::start(plan, FakeEngines::new(times()), duals, Arc::clone(&telemetry)).unwrap();
    follow(&system, deadline(), |_, _| ()).unwrap();
    let end = deadline();
    // The supervisor copies what is counted elsewhere when it looks.
    while !telemetry.render().contains("saddle_actor_busy_seconds_total{role=\"learner\",index=\"0\"}") {
        assert!(Instant::now() < end, "{}", telemetry.render());
        std::thread::yield_now();
    }
    let text = telemetry.render();
    for line in [
        "saddle_policy_version 5",
        "saddle_rollouts_total{outcome=\"trained\"} 20",
        "saddle_lambda{constraint=\"harm\"} ",
        "saddle_cost_limit{constraint=\"harm\"} 0",
        "saddle_credits_limit 8",
        "saddle_edge_capacity{edge=\"join→learner\"} 256",
        "saddle_rollout_staleness_versions_count{stage=\"consumed\"} 20",
        "saddle_score_batch_size_count{stream=\"cost_harm\"} ",
        "saddle_weights_publish_seconds_count{phase=\"copy\"} 5",
        "saddle_actor_heartbeat_timestamp_seconds{role=\"generator\",index=\"0\"} ",
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line}\nis not in\n{text}");
    }
}

/// What an operator does after an update.
#[derive(Clone, Copy, Debug)]
enum Order {
    Scale(Role, usize),
    Nothing,
}

fn orders() -> impl Strategy<Value = Vec<Order>> {
    let role = prop_oneof![
        Just(Role::Generator),
        Just(Role::Scorer(Lane::Reward)),
        Just(Role::Scorer(Lane::Cost(0))),
        Just(Role::Scorer(Lane::Reference))
    ];
    let order =
        prop_oneof![(role, 1..5_usize).prop_map(|(role, count)| Order::Scale(role, count)), Just(Order::Nothing)];
    prop::collection::vec(order, 12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the delays, the sizes, the panics and the scaling.
    #[test]
    fn staleness_is_bounded_credits_are_conserved_and_each_prompt_ends_once(
        sizes in (1..4_usize, 1..6_usize, 1..13_u64, 1..5_usize, 1..4_usize),
        micros in (0..400_u64, 0..400_u64, 0..2000_u64, 0..2000_u64),
        weights in prop_oneof![Just("continue_keep"), Just("continue_rebuild"), Just("drain")],
        (seed, chance) in (any::<u64>(), 0.0..0.2),
        orders in orders(),
    ) {
        let (staleness, batch, updates, slots, items) = sizes;
        let mut plan = plan(staleness, batch, updates);
        plan.edges.items = items;
        plan.edges.flush_seconds = micros.3 as f64 / 1e6;
        plan.schedule = toml::from_str(&format!("staleness = {staleness}\nweights = \"{weights}\"")).unwrap();
        let [decode_step, score, update] = [micros.0, micros.1, micros.2].map(Duration::from_micros);
        // A hang of no time is none.
        let (mishap, _) = Faults { seed, of_each_role: 2, chance, hang: Duration::ZERO }.start();
        let engines = FakeEngines::failing(Times { slots, decode_step, score, update, ..times() }, mishap);
        let system = start(&plan, engines);
        let (mut made, mut orders) = (Vec::new(), orders.into_iter());
        follow(&system, deadline(), |system, update| {
            made.push(update);
            if let Some(Order::Scale(role, count)) = orders.next() {
                system.scale(role, count).unwrap();
            }
        })
        .unwrap();
        let remains = system.finish(PATIENCE);
        check(&plan, &made, &remains);
        prop_assert_eq!(remains.counts.drawn, remains.counts.ended.iter().sum::<u64>());
        prop_assert_eq!(remains.counts.lost(), 0);
    }
}

#[test]
fn a_stage_that_hangs_for_longer_than_the_window_each_time_ends_the_run() {
    let mut plan = plan(1, 4, 1000);
    plan.supervision = SupervisionSection {
        heartbeat_seconds: 0.6,
        restarts: 2,
        window_seconds: 0.5,
        backoff_seconds: 0.001,
        ..plan.supervision
    };
    let hang: Mishap = Arc::new(|role, _| {
        if role == Role::Scorer(Lane::Reward) {
            std::thread::sleep(Duration::from_millis(1500));
        }
    });
    let system = start(&plan, FakeEngines::failing(times(), hang));
    let reason = follow(&system, deadline(), |_, _| ()).unwrap_err();
    assert!(reason.contains("reward-0 failed more than 2 times within 0.5 s, the last time: hung"), "{reason}");
    drop(system.finish(PATIENCE));
}
