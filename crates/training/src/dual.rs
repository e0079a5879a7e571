//! One constraint in training: its cost estimate and its multiplier, and what one step did.

use crate::config::{ConstraintSection, Disturbance, TrainConfig};
use crate::metrics::Named;
use saddle_algorithms::dual::{
    ConstraintConfig, Controller, CostEstimate, CostEstimator, CostSample, HoldCause, LIMIT_STANDARD_ERRORS, Step,
};
use saddle_core::PolicyVersion;

/// One constraint's estimate and multiplier.
#[derive(Clone, Debug)]
pub struct Dual {
    name: String,
    limit: f64,
    maximum_multiplier: f64,
    estimator: CostEstimator,
    controller: Controller,
    disturbances: Vec<Disturbance>,
    /// The last update before which λ is held.
    held_until: u64,
}

/// What a constraint's step for one policy version went by, and came to.
#[derive(Clone, Debug, PartialEq)]
pub struct DualStep {
    /// Name of the constraint.
    pub constraint: String,
    /// The estimate; none where there were too few costs.
    pub estimate: Option<CostEstimate>,
    /// Effective samples of the estimate, as a share of those that it was made from.
    pub ess_ratio: Option<f64>,
    /// d.
    pub limit: f64,
    /// What became of λ.
    pub step: Step,
    /// λ after the step.
    pub multiplier: f64,
    /// λ_max.
    pub maximum_multiplier: f64,
}

impl Dual {
    /// The constraints of `config`, in the order of their names.
    #[must_use]
    pub fn all(config: &TrainConfig) -> Vec<Self> {
        let dual = |(name, section): (&String, &ConstraintSection)| Self {
            disturbances: config.disturbances.clone(),
            ..Self::new(name, &section.dual)
        };
        config.constraints.iter().map(dual).collect()
    }

    /// The constraint `name`; `config` is valid.
    #[must_use]
    pub fn new(name: &str, config: &ConstraintConfig) -> Self {
        Self {
            name: name.to_owned(),
            limit: config.cost_limit,
            maximum_multiplier: config.maximum_multiplier,
            estimator: CostEstimator::new(&config.estimator),
            controller: Controller::new(config),
            disturbances: Vec::new(),
            held_until: 0,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// λ.
    #[must_use]
    pub fn multiplier(&self) -> f64 {
        self.controller.multiplier()
    }

    /// Takes in the cost of a response that was scored under the weights of `version`.
    pub fn observe(&mut self, cost: f32, version: PolicyVersion) {
        self.estimator.observe(CostSample { cost: f64::from(cost), version });
    }

    /// The multiplier's one step for the policy of `version`, on costs that come `delay_versions` late.
    pub fn step(&mut self, version: PolicyVersion, delay_versions: f64) -> DualStep {
        let update = version.next().0;
        self.disturb(update);
        let estimate = self.estimator.estimate(version);
        let step = self.controller.step(estimate.filter(|_| update > self.held_until), delay_versions);
        let considered = self.estimator.considered_samples(version) as f64;
        DualStep {
            constraint: self.name.clone(),
            estimate,
            ess_ratio: estimate.map(|estimate| estimate.effective_samples / considered),
            limit: self.limit,
            step,
            multiplier: self.multiplier(),
            maximum_multiplier: self.maximum_multiplier,
        }
    }

    fn disturb(&mut self, update: u64) {
        for disturbance in self.disturbances.iter().filter(|each| each.at_update == update) {
            if let Some(multiplier) = disturbance.multiplier {
                self.controller.set_multiplier(multiplier);
            }
            self.limit += disturbance.cost_limit_change.unwrap_or(0.0);
            self.controller.set_cost_limit(self.limit);
            if disturbance.hold_updates > 0 {
                self.held_until = update + disturbance.hold_updates - 1;
            }
        }
    }
}

impl DualStep {
    /// A step of the constraint `constraint` that has every number.
    pub(crate) fn named(constraint: &str) -> Self {
        Self {
            constraint: constraint.to_owned(),
            estimate: Some(CostEstimate { mean: 0.0, standard_error: 0.0, effective_samples: 1.0, margin: 0.0 }),
            ess_ratio: Some(1.0),
            limit: 0.0,
            step: Step::Moved { from: 0.0, to: 0.0 },
            multiplier: 0.0,
            maximum_multiplier: 0.0,
        }
    }

    /// Whether the estimate is over the limit by more than its error. One that is not finite is: not-a-number is never safe.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.estimate.is_some_and(|estimate| {
            let within = estimate.mean - LIMIT_STANDARD_ERRORS * estimate.standard_error <= self.limit;
            !within
        })
    }

    /// Whether the estimate is at or under the limit.
    #[must_use]
    pub fn is_within(&self) -> bool {
        self.estimate.is_some_and(|estimate| estimate.mean <= self.limit)
    }

    /// Whether λ is as large as it may be, so that a cost over its limit is no longer answered.
    #[must_use]
    pub fn is_at_cap(&self) -> bool {
        self.multiplier >= self.maximum_multiplier
    }

    /// Its numbers by name.
    pub(crate) fn metrics(&self, names: Named) -> Vec<(String, f64)> {
        let named = |name: &str, value: f64| (names.constraint(name, &self.constraint), value);
        let mut metrics = Vec::new();
        if let Some(estimate) = self.estimate {
            metrics.push(named("cost_estimate", estimate.mean));
            metrics.push(named("cost_estimate_stderr", estimate.standard_error));
        }
        metrics.extend(self.ess_ratio.map(|ratio| named("cost_estimator_ess_ratio", ratio)));
        for cause in HoldCause::ALL {
            let held = self.step == Step::Held(cause);
            metrics.push(named(&format!("lambda_held_{}", cause.label()), f64::from(u8::from(held))));
        }
        metrics.push(named("lambda", self.multiplier));
        metrics.push(named("cost_limit", self.limit));
        metrics.push(named("limit_exceeded", f64::from(u8::from(self.is_over()))));
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(mean: f64, standard_error: f64) -> DualStep {
        DualStep {
            constraint: "harm".to_owned(),
            estimate: Some(CostEstimate { mean, standard_error, effective_samples: 64.0, margin: 0.0 }),
            ess_ratio: Some(0.5),
            limit: -1.0,
            step: Step::Moved { from: 1.0, to: 2.0 },
            multiplier: 2.0,
            maximum_multiplier: 2.0,
        }
    }

    #[test]
    fn a_cost_is_over_its_limit_beyond_two_standard_errors_and_when_it_is_no_number() {
        assert!(!step(-0.8, 0.1).is_over() && step(-0.79, 0.1).is_over());
        assert!(step(f64::NAN, 0.1).is_over() && step(-5.0, f64::NAN).is_over());
        assert!(!DualStep { estimate: None, ..step(0.0, 0.0) }.is_over());
        assert!(step(-1.0, 0.1).is_within() && !step(-0.99, 0.1).is_within() && !step(f64::NAN, 0.1).is_within());
    }

    #[test]
    fn disturbances_change_limit_and_multiplier_at_their_update_and_hold_it() {
        let config = ConstraintConfig { cost_limit: 1.0, initial_multiplier: 2.0, ..ConstraintConfig::default() };
        let disturbances = vec![
            Disturbance { at_update: 2, multiplier: Some(0.5), hold_updates: 2, ..Disturbance::default() },
            Disturbance { at_update: 4, cost_limit_change: Some(-0.5), ..Disturbance::default() },
        ];
        let mut dual = Dual { disturbances, ..Dual::new("harm", &config) };
        let steps: Vec<_> = (0..4)
            .map(|version| {
                (0..128).for_each(|_| dual.observe(0.0, PolicyVersion(version)));
                dual.step(PolicyVersion(version), 0.0)
            })
            .collect();
        assert!(steps[0].multiplier < 2.0 && steps[0].limit == 1.0);
        assert_eq!((steps[1].multiplier, steps[2].multiplier), (0.5, 0.5));
        assert!(steps[3].multiplier < 0.5 && steps[3].limit == 0.5);
    }

    #[test]
    fn numbers_have_the_constraints_name_where_there_are_several() {
        let names =
            |only| step(-0.5, 0.1).metrics(Named { only }).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(true)[0], "cost_estimate");
        assert_eq!(names(false)[0], "cost_estimate_harm");
        assert_eq!(step(-0.5, 0.1).metrics(Named { only: true }).last().unwrap(), &("limit_exceeded".to_owned(), 1.0));
    }
}
