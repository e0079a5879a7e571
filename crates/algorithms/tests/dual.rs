//! Controllers and estimators: bounds, holds, state, and what they refuse.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use proptest::prelude::*;
use saddle_algorithms::dual::{
    ConstraintConfig, Controller, ControllerConfig, ControllerState, CostEstimate, CostEstimator, CostSample,
    EstimatorConfig, FreshConfig, HoldCause, LinearConfig, LinearOptimizer, LogSgdConfig, PiConfig, PidConfig, Step,
    UpperConfig, WindowConfig,
};
use saddle_core::PolicyVersion;

fn every_controller() -> Vec<ControllerConfig> {
    let adam = LinearConfig { optimizer: LinearOptimizer::Adam, ..LinearConfig::default() };
    vec![
        ControllerConfig::Pi(PiConfig::default()),
        ControllerConfig::Pid(PidConfig::default()),
        ControllerConfig::Linear(LinearConfig::default()),
        ControllerConfig::Linear(adam),
        ControllerConfig::LogSgd(LogSgdConfig::default()),
        ControllerConfig::Fixed,
    ]
}

fn constraint(controller: ControllerConfig) -> ConstraintConfig {
    ConstraintConfig { controller, ..ConstraintConfig::default() }
}

fn exact(mean: f64) -> Option<CostEstimate> {
    Some(CostEstimate { mean, standard_error: 0.0, effective_samples: 128.0, margin: 0.0 })
}

fn after(controller: ControllerConfig, costs: &[f64]) -> f64 {
    let mut controller = Controller::new(&constraint(controller));
    for &cost in costs {
        controller.step(exact(cost), 1.0);
    }
    controller.multiplier()
}

fn any_cost() -> impl Strategy<Value = f64> {
    prop_oneof![-2.0..2.0_f64, -1e6..1e6_f64, Just(f64::NAN), Just(f64::INFINITY), Just(f64::MAX), Just(f64::MIN)]
}

proptest! {
    #[test]
    fn lambda_stays_finite_and_in_bounds_whatever_the_costs(costs in prop::collection::vec(any_cost(), 1..60)) {
        for config in every_controller() {
            let mut controller = Controller::new(&constraint(config));
            for &cost in &costs {
                controller.step(exact(cost), 1.0);
                prop_assert!((0.0..=5.0).contains(&controller.multiplier()), "{:?}", controller.state());
            }
        }
    }

    #[test]
    fn a_cost_that_is_not_finite_never_moves_lambda_nor_what_follows(
        costs in prop::collection::vec(-2.0..2.0_f64, 1..20),
        at in 0..20_usize,
        bad in prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY)],
    ) {
        let mut spoiled = costs.clone();
        spoiled.insert(at.min(costs.len()), bad);
        for config in every_controller() {
            prop_assert_eq!(after(config.clone(), &costs), after(config, &spoiled));
        }
    }

    #[test]
    fn a_steady_excess_moves_lambda_its_own_way(excess in 1e-3..1e6_f64, steps in 1..50_usize) {
        for config in [
            ControllerConfig::Pi(PiConfig::default()),
            ControllerConfig::Linear(LinearConfig::default()),
            ControllerConfig::LogSgd(LogSgdConfig::default()),
            ControllerConfig::Pid(PidConfig { derivative_gain: 0.0, proportional_smoothing: 0.0, ..PidConfig::default() }),
        ] {
            prop_assert!(after(config.clone(), &vec![excess; steps]) > 1.0, "{config:?}");
            prop_assert!(after(config.clone(), &vec![-excess; steps]) < 1.0, "{config:?}");
        }
    }

    #[test]
    fn a_saved_state_goes_on_exactly_where_it_was(
        costs in prop::collection::vec(-3.0..3.0_f64, 2..40),
        cut in 1..39_usize,
    ) {
        let cut = cut.min(costs.len() - 1);
        for config in every_controller().into_iter().map(constraint) {
            let mut straight = Controller::new(&config);
            let mut before = Controller::new(&config);
            for &cost in &costs[..cut] {
                straight.step(exact(cost), 2.0);
                before.step(exact(cost), 2.0);
            }
            let saved = serde_json::to_string(before.state()).unwrap();
            let state: ControllerState = serde_json::from_str(&saved).unwrap();
            let mut resumed = Controller::restore(&config, state).unwrap();
            for &cost in &costs[cut..] {
                straight.step(exact(cost), 2.0);
                resumed.step(exact(cost), 2.0);
            }
            prop_assert_eq!(straight.state(), resumed.state());
        }
    }
}

#[test]
fn a_state_of_another_kind_is_refused_and_tighter_bounds_are_applied() {
    let config = constraint(ControllerConfig::Fixed);
    let other = Controller::new(&ConstraintConfig::default()).state().clone();
    let refusal = Controller::restore(&config, other).unwrap_err().to_string();
    assert!(refusal.contains("`pi`") && refusal.contains("`fixed`"), "{refusal}");
    let tight = ConstraintConfig { maximum_multiplier: 0.5, ..config.clone() };
    let state = Controller::new(&config).state().clone();
    assert_eq!(Controller::restore(&tight, state).unwrap().multiplier(), 0.5);
}

#[test]
fn a_pi_step_is_bounded_and_slowed_by_delay_and_skipped_inside_the_noise() {
    let step = |cost: f64, standard_error: f64, delay: f64| {
        let pi = PiConfig {
            integral_gain: 0.1,
            proportional_gain: 0.0,
            violation_gain: 0.0,
            step_limit: 0.1,
            floor: 1e-3,
            dead_zone_standard_errors: 0.5,
            ..PiConfig::default()
        };
        let mut controller = Controller::new(&constraint(ControllerConfig::Pi(pi)));
        let estimate = CostEstimate { mean: cost, standard_error, effective_samples: 64.0, margin: 0.0 };
        (controller.step(Some(estimate), delay), controller.multiplier())
    };
    let log_step = |cost, delay| ((step(cost, 0.0, delay).1 + 1e-3) / 1.001_f64).ln();
    assert!((log_step(1e6, 0.0) - 0.1).abs() < 1e-12);
    assert!((log_step(0.5, 0.0) - 0.05).abs() < 1e-12);
    assert!((log_step(0.5, 4.0) - 0.01).abs() < 1e-12);
    assert_eq!(step(0.4, 1.0, 0.0), (Step::Held(HoldCause::DeadZone), 1.0));
    assert!(matches!(step(0.6, 1.0, f64::NAN).0, Step::Moved { .. }));
}

#[test]
fn pi_answers_an_excess_by_as_much_as_it_is_and_no_more_however_many_steps_that_takes() {
    let pi = PiConfig {
        integral_gain: 0.0,
        proportional_gain: 0.5,
        violation_gain: 0.0,
        step_limit: 0.3,
        ..PiConfig::default()
    };
    let config = ConstraintConfig { maximum_multiplier: 100.0, ..constraint(ControllerConfig::Pi(pi)) };
    let mut controller = Controller::new(&config);
    let mut parts = |cost: f64| {
        controller.step(exact(cost), 0.0);
        ((controller.multiplier() + 1.0) / 2.0).ln()
    };
    let (first, second) = (parts(1.0), parts(1.0));
    assert!((first - 0.3).abs() < 1e-12 && (second - 0.5).abs() < 1e-12, "{first} {second}");
    // One wild estimate is not made up for afterwards.
    assert!((parts(1e9) - 0.8).abs() < 1e-12);
    let back: Vec<f64> = (0..3).map(|_| parts(0.0)).collect();
    assert!(back[2].abs() < 1e-12, "{back:?}");
}

#[test]
fn pi_leaves_zero_again_and_comes_off_its_cap_at_once() {
    let mut controller = Controller::new(&ConstraintConfig { initial_multiplier: 0.0, ..ConstraintConfig::default() });
    controller.step(exact(1.0), 0.0);
    assert!(controller.multiplier() > 0.0);
    for _ in 0..1000 {
        controller.step(exact(1.0), 0.0);
    }
    assert_eq!(controller.multiplier(), 5.0);
    controller.step(exact(-1.0), 0.0);
    assert!(controller.multiplier() < 5.0);
}

#[test]
fn anti_windup_lets_pid_come_down_as_soon_as_the_excess_does() {
    let updates_to_fall = |anti_windup: bool| {
        let config = PidConfig { anti_windup, integral_gain: 0.1, ..PidConfig::default() };
        let mut controller = Controller::new(&constraint(ControllerConfig::Pid(config)));
        for _ in 0..500 {
            controller.step(exact(1.0), 0.0);
        }
        (0..1000)
            .take_while(|_| {
                controller.step(exact(-1.0), 0.0);
                controller.multiplier() > 2.5
            })
            .count()
    };
    assert!(updates_to_fall(true) < 40);
    assert!(updates_to_fall(false) > 400);
}

#[test]
fn every_hold_is_counted_by_its_cause() {
    let start_up = LogSgdConfig { delay_updates: 1, ..LogSgdConfig::default() };
    let mut controller = Controller::new(&constraint(ControllerConfig::LogSgd(start_up)));
    assert_eq!(controller.step(None, 0.0), Step::Held(HoldCause::NoEstimate));
    assert_eq!(controller.step(exact(f64::NAN), 0.0), Step::Held(HoldCause::NonFinite));
    assert_eq!(controller.step(exact(1.0), 0.0), Step::Held(HoldCause::StartUp));
    assert!(matches!(controller.step(exact(1.0), 0.0), Step::Moved { from: 1.0, .. }));
    let holds = controller.state().holds;
    assert_eq!((holds.no_estimate, holds.non_finite, holds.start_up, holds.dead_zone), (1, 1, 1, 0));
}

fn estimator(config: EstimatorConfig, samples: &[(f64, u64)]) -> CostEstimator {
    let mut estimator = CostEstimator::new(&config);
    for &(cost, version) in samples {
        estimator.observe(CostSample { cost, version: PolicyVersion(version) });
    }
    estimator
}

fn few(minimum_effective_samples: f64) -> FreshConfig {
    FreshConfig { minimum_effective_samples, ..FreshConfig::default() }
}

#[test]
fn fresh_weighs_by_lag_and_gives_nothing_below_its_minimum() {
    let samples = [(4.0, 10), (4.0, 10), (1.0, 9), (1.0, 9), (100.0, 8)];
    let fresh = |minimum| estimator(EstimatorConfig::Fresh(few(minimum)), &samples).estimate(PolicyVersion(10));
    let estimate = fresh(2.0).unwrap();
    assert!((estimate.mean - 3.0).abs() < 1e-12);
    assert!((estimate.effective_samples - 9.0 / 2.5).abs() < 1e-12);
    assert!(estimate.standard_error > 0.0);
    assert_eq!(fresh(4.0), None);
    let considered = |config| estimator(config, &samples).considered_samples(PolicyVersion(10));
    let upper = UpperConfig { fresh: few(2.0), ..UpperConfig::default() };
    let configs = [
        EstimatorConfig::Fresh(few(2.0)),
        EstimatorConfig::Upper(upper),
        EstimatorConfig::Window(WindowConfig::default()),
    ];
    assert_eq!(configs.map(considered), [4, 4, 5], "the one of version 8 is too old for the first two");
}

/// An estimator is said to be out of reach exactly where it gives nothing after `versions` versions of `samples` costs each.
fn check_reach(config: EstimatorConfig, samples: usize, versions: u64) {
    let all: Vec<_> = (0..versions).flat_map(|version| (0..samples).map(move |_| (1.0, version))).collect();
    let last = PolicyVersion(versions - 1);
    let estimate = estimator(config.clone(), &all).estimate(last);
    assert_eq!(config.unattainable(samples, versions).is_none(), estimate.is_some(), "{config:?} {samples} {versions}");
}

#[test]
fn an_estimator_is_out_of_reach_exactly_where_steady_batches_give_no_estimate() {
    for samples in [1, 35, 36, 37, 63, 64, 65] {
        for versions in [1, 2, 3, 10] {
            for lag_discount in [0.0, 0.5, 1.0] {
                for maximum_lag_versions in [0, 1, 3] {
                    let fresh = FreshConfig { maximum_lag_versions, lag_discount, ..FreshConfig::default() };
                    check_reach(EstimatorConfig::Fresh(fresh), samples, versions);
                    check_reach(
                        EstimatorConfig::Upper(UpperConfig { fresh, ..UpperConfig::default() }),
                        samples,
                        versions,
                    );
                }
            }
            check_reach(EstimatorConfig::Window(WindowConfig::default()), samples, versions);
        }
    }
    let out_of_reach = EstimatorConfig::default().unattainable(8, 100).unwrap();
    assert_eq!((out_of_reach.key, out_of_reach.minimum), ("fresh.minimum_effective_samples", 64.0));
    assert!((out_of_reach.most - 14.4).abs() < 1e-12);
}

#[test]
fn upper_adds_its_standard_errors() {
    let samples: Vec<_> = (0..64).map(|index| (f64::from(index % 2), 3)).collect();
    let mean = estimator(EstimatorConfig::Fresh(few(64.0)), &samples).estimate(PolicyVersion(3)).unwrap();
    let config = UpperConfig { standard_errors: 2.0, fresh: few(64.0) };
    let upper = estimator(EstimatorConfig::Upper(config), &samples).estimate(PolicyVersion(3)).unwrap();
    assert!((mean.standard_error - (0.25_f64 / 63.0).sqrt()).abs() < 1e-12);
    assert_eq!((upper.mean, upper.margin), (mean.mean, 2.0 * mean.standard_error));
    let after = |estimate| {
        let mut controller = Controller::new(&ConstraintConfig { cost_limit: 0.55, ..ConstraintConfig::default() });
        controller.step(Some(estimate), 0.0);
        controller.multiplier()
    };
    assert!(
        after(mean) < 1.0 && after(upper) > 1.0,
        "the mean of 0.5 is under the limit, with two standard errors it is over"
    );
}

#[test]
fn a_cost_that_is_not_finite_is_counted_and_left_out_and_memory_is_bounded() {
    let window = EstimatorConfig::Window(WindowConfig { window_samples: 2 });
    let estimator = estimator(window, &[(9.0, 0), (1.0, 0), (f64::NAN, 0), (2.0, 0)]);
    assert_eq!(estimator.estimate(PolicyVersion(0)).unwrap().mean, 1.5);
    assert_eq!(estimator.refused(), 1);
    let saved = serde_json::to_string(&estimator).unwrap();
    assert_eq!(serde_json::from_str::<CostEstimator>(&saved).unwrap(), estimator);
}

#[test]
fn no_sample_gives_no_estimate() {
    for config in [
        EstimatorConfig::Fresh(FreshConfig::default()),
        EstimatorConfig::Upper(UpperConfig::default()),
        EstimatorConfig::Window(WindowConfig::default()),
    ] {
        assert_eq!(CostEstimator::new(&config).estimate(PolicyVersion(0)), None);
    }
}

#[test]
fn a_configuration_names_its_kind_takes_its_defaults_and_refuses_unknown_keys() {
    let read = |text: &str| serde_json::from_str::<ConstraintConfig>(text);
    assert_eq!(read("{}").unwrap(), ConstraintConfig::default());
    let written = read(r#"{"cost_limit": -1, "controller": {"kind": "log_sgd", "learning_rate": 1}}"#).unwrap();
    assert_eq!(written.controller, ControllerConfig::LogSgd(LogSgdConfig { learning_rate: 1.0, delay_updates: 0 }));
    assert_eq!(read(r#"{"controller": {"kind": "fixed"}}"#).unwrap().controller, ControllerConfig::Fixed);
    let upper = read(r#"{"estimator": {"kind": "upper", "fresh": {"maximum_lag_versions": 3}}}"#).unwrap();
    assert!(matches!(upper.estimator, EstimatorConfig::Upper(upper) if upper.fresh.maximum_lag_versions == 3));
    assert!(read(r#"{"controller": {"kind": "pi", "gain": 1}}"#).unwrap_err().to_string().contains("gain"));
    assert!(read(r#"{"controller": {"kind": "bang_bang"}}"#).is_err());
    let text = serde_json::to_string(&written).unwrap();
    assert_eq!(read(&text).unwrap(), written);
}

#[test]
fn every_default_is_valid_and_all_problems_are_named_at_once() {
    for controller in every_controller() {
        assert!(constraint(controller).validate().is_empty());
    }
    let wrong = ConstraintConfig {
        cost_limit: f64::NAN,
        initial_multiplier: 9.0,
        controller: ControllerConfig::Pi(PiConfig { step_limit: 0.0, integral_gain: -1.0, ..PiConfig::default() }),
        estimator: EstimatorConfig::Fresh(few(1.0)),
        ..ConstraintConfig::default()
    };
    let keys: Vec<String> = wrong.validate().iter().map(|problem| problem.key.clone()).collect();
    assert_eq!(
        keys,
        [
            "cost_limit",
            "initial_multiplier",
            "controller.integral_gain",
            "controller.step_limit",
            "estimator.minimum_effective_samples",
        ]
    );
    let stuck = ConstraintConfig { initial_multiplier: 0.0, ..constraint(every_controller()[4].clone()) };
    assert!(!stuck.validate().is_empty());
}
