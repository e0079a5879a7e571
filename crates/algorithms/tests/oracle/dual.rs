//! Multiplier sequences. The laws are driven bare where a case leaves the bounds that a controller keeps.

use crate::support::cases;
use saddle_algorithms::dual::{
    CostEstimator, CostSample, EstimatorConfig, LinearConfig, LinearLaw, LinearOptimizer, LogSgdConfig, LogSgdLaw,
    PidConfig, PidLaw, WindowConfig,
};
use saddle_core::PolicyVersion;

#[test]
fn the_published_rule_agrees() {
    for case in cases("lambda_update_sequence", 24) {
        let config =
            LogSgdConfig { learning_rate: case.number("lambda_lr"), delay_updates: case.count("delay_steps") as u64 };
        let window = WindowConfig { window_samples: case.count("window") };
        let maximum = case.number_or("lambda_max", f64::INFINITY);
        let mut estimator = CostEstimator::new(&EstimatorConfig::Window(window));
        let mut multiplier = case.number("lambda_init");
        let mut law = LogSgdLaw::new(multiplier);
        let (mut estimates, mut multipliers, mut logs) = (Vec::new(), Vec::new(), Vec::new());
        for batch in case.rows("cost_batches") {
            for cost in batch {
                estimator.observe(CostSample { cost, version: PolicyVersion(0) });
            }
            let mean = estimator.estimate(PolicyVersion(0)).unwrap().mean;
            multiplier = law.advance(&config, mean - case.number("threshold"), maximum).unwrap_or(multiplier);
            estimates.push(mean);
            multipliers.push(multiplier);
            logs.push(multiplier.ln());
        }
        case.check("episode_cost", &estimates, &case.expected["episode_cost"]);
        case.check("lambda", &multipliers, &case.expected["lambda"]);
        case.check("log_lambda", &logs, &case.expected["log_lambda"]);
    }
}

#[test]
fn the_pid_controller_agrees() {
    for case in cases("omnisafe_pid_lagrangian", 17) {
        let (difference, sum) = (case.count("diff_norm") == 1, case.count("sum_norm") == 1);
        let maximum = match (difference, sum) {
            (true, _) => 1.0,
            (false, true) => f64::INFINITY,
            (false, false) => case.number("penalty_max"),
        };
        let config = PidConfig {
            proportional_gain: case.number("pid_kp"),
            integral_gain: case.number("pid_ki"),
            derivative_gain: case.number("pid_kd"),
            derivative_delay_updates: case.count("pid_d_delay"),
            proportional_smoothing: case.number("pid_delta_p_ema_alpha"),
            derivative_smoothing: case.number("pid_delta_d_ema_alpha"),
            anti_windup: difference,
        };
        let mut law = PidLaw::new(case.number("lagrangian_multiplier_init"));
        let limit = case.number("cost_limit");
        let multipliers: Vec<f64> =
            case.flat("costs").iter().map(|&cost| law.advance(&config, cost, limit, maximum).min(maximum)).collect();
        case.check("lambda", &multipliers, &case.expected["lambda"]);
    }
}

#[test]
fn the_linear_controller_agrees_with_both_optimizers() {
    for case in cases("omnisafe_linear_lagrange", 17) {
        let optimizer = match case.text("lambda_optimizer") {
            "SGD" => LinearOptimizer::Sgd,
            "Adam" => LinearOptimizer::Adam,
            other => panic!("{other}"),
        };
        let config = LinearConfig { learning_rate: case.number("lambda_lr"), optimizer };
        let maximum = case.number_or("lagrangian_upper_bound", f64::INFINITY);
        let mut law = LinearLaw::default();
        let mut multiplier = case.number("lagrangian_multiplier_init").max(0.0);
        let multipliers: Vec<f64> = case
            .flat("costs")
            .iter()
            .map(|cost| {
                multiplier = law.advance(&config, multiplier, cost - case.number("cost_limit")).clamp(0.0, maximum);
                multiplier
            })
            .collect();
        case.check("lambda", &multipliers, &case.expected["lambda"]);
    }
}
