//! What an update of the policy tells, as typed numbers. Names are made of them in one place, [`Named`], for sinks that go by names;
//! Prometheus goes by the fields.

use crate::dual::DualStep;
use saddle_core::{Finish, ScoredRollout};

/// What one update did to the policy and the critics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UpdateMetrics {
    /// How many versions old the batch was, on average and at most.
    pub staleness_versions: (f64, f64),
    /// The importance weights of the batch.
    pub importance: ImportanceMetrics,
    /// Share of the responses that were left out of the policy loss.
    pub rejected_ratio: f64,
    /// How far policies are from one another.
    pub kl: KlMetrics,
    /// Mean entropy of the policy, in nats a token.
    pub entropy: f64,
    /// Share of the tokens whose ratio was clipped.
    pub clip_ratio: f64,
    /// Mean policy loss over the steps.
    pub policy_loss: f64,
    /// The PTX loss of the last step, where there is one.
    pub ptx_loss: Option<f64>,
    /// Mean gradient norms of policy and critics, before clipping.
    pub gradient_norm: (f64, f64),
    /// What the guards left out of this update.
    pub guards: GuardMetrics,
    /// Largest difference of a log-prob from the generator's, of tokens under equal weights.
    pub log_prob_gap: Option<f64>,
    /// The critics, by what they estimate.
    pub streams: Vec<StreamMetrics>,
    /// β.
    pub kl_coefficient: f64,
    /// The divergence that β is moved to hold, in nats a response.
    pub reference_kl_target: Option<f64>,
    /// Where the time went, in seconds.
    pub phases: PhaseSeconds,
}

/// Importance weights π_k/μ of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ImportanceMetrics {
    /// Mean weight of a token.
    pub weight_mean: f64,
    /// Largest weight of a token.
    pub weight_max: f64,
    /// Effective share of the tokens.
    pub ess_ratio_token: f64,
    /// Effective share of the responses.
    pub ess_ratio_sequence: f64,
    /// Share of the weights that were cut.
    pub truncated_ratio: f64,
    /// Tokens whose weight was not finite.
    pub non_finite_tokens: f64,
}

/// Divergences, in nats: of a token, but for that from the reference, which is of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KlMetrics {
    /// KL(μ ‖ π_k), of the sampling policy from the one before the update.
    pub behaviour_proximal: f64,
    /// KL(π_k ‖ π), after the last step.
    pub proximal_current: f64,
    /// KL(π_k ‖ π_ref).
    pub current_reference: f64,
}

/// How often a guard stepped in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuardMetrics {
    /// Passes ended early, since the policy had moved far enough.
    pub stopped_by_kl: u64,
    /// Too many responses were rejected.
    pub skipped_rejected: u64,
    /// The batch was too far from the policy.
    pub skipped_drift: u64,
    /// Numbers were not finite.
    pub skipped_non_finite: u64,
}

/// What a critic estimates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// The reward to come.
    Reward,
    /// The cost to come, of the constraint of this name.
    Cost(String),
}

impl Stream {
    /// Its name as a label.
    #[must_use]
    pub fn label(&self) -> &str {
        match self {
            Self::Reward => "reward",
            Self::Cost(constraint) => constraint,
        }
    }
}

/// One critic in an update.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamMetrics {
    /// What it estimates.
    pub stream: Stream,
    /// Mean loss over the steps.
    pub critic_loss: f64,
    /// Share of the variance of its targets that it explained before the update.
    pub explained_variance: f64,
}

/// Seconds of an update by what they were spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PhaseSeconds {
    /// log π_k of the batch.
    pub logprob: f64,
    /// Values of the batch, before the first step.
    pub value: f64,
    /// The policy's passes, forward and backward, PTX included.
    pub policy: f64,
    /// The critics' passes.
    pub critic: f64,
    /// Optimiser steps.
    pub optimizer: f64,
}

/// Means over a batch as it was sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchMetrics {
    /// Mean reward.
    pub reward_mean: f64,
    /// Mean length of a response, in tokens.
    pub response_length_mean: f64,
    /// Share of the responses that ended at the length limit.
    pub truncated_ratio: f64,
    /// The costs, in the order of the constraints.
    pub costs: Vec<CostMetrics>,
}

/// The costs of one constraint.
#[derive(Clone, Debug, PartialEq)]
pub struct CostMetrics {
    /// Name of the constraint.
    pub constraint: String,
    /// Mean cost.
    pub mean: f64,
    /// Share of the responses with a cost above 0, or with none that is a number.
    pub unsafe_ratio: f64,
    /// Mean cost by the prompts' kind.
    pub by_kind: Vec<(String, f64)>,
}

impl BatchMetrics {
    /// Of a batch with one cost for each of `constraints`.
    #[must_use]
    pub fn of<'a>(scored: &[ScoredRollout], constraints: impl Iterator<Item = &'a str>) -> Self {
        let mean = |value: &dyn Fn(&ScoredRollout) -> f64| scored.iter().map(value).sum::<f64>() / scored.len() as f64;
        let mut kinds: Vec<&str> = scored.iter().filter_map(|each| each.rollout.prompt.kind.as_deref()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let costs = constraints.enumerate().map(|(index, constraint)| {
            let cost = |each: &ScoredRollout| each.costs.get(index).copied().map_or(f64::NAN, f64::from);
            let of_kind = |kind: &str| {
                let of_kind = scored.iter().filter(|each| each.rollout.prompt.kind.as_deref() == Some(kind)).map(cost);
                let costs: Vec<f64> = of_kind.collect();
                (kind.to_owned(), costs.iter().sum::<f64>() / costs.len() as f64)
            };
            CostMetrics {
                constraint: constraint.to_owned(),
                mean: mean(&cost),
                unsafe_ratio: mean(&|each| {
                    let is_safe = cost(each) <= 0.0;
                    f64::from(u8::from(!is_safe))
                }),
                by_kind: kinds.iter().map(|kind| of_kind(kind)).collect(),
            }
        });
        Self {
            reward_mean: mean(&|each| f64::from(each.reward)),
            response_length_mean: mean(&|each| each.rollout.tokens.len() as f64),
            truncated_ratio: mean(&|each| f64::from(u8::from(each.rollout.finish == Finish::Length))),
            costs: costs.collect(),
        }
    }
}

/// Makes names, for sinks that go by them. A constraint's numbers have its name where there are several constraints.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// Whether there is one constraint only.
    pub only: bool,
}

impl Named {
    /// A metric of a constraint.
    #[must_use]
    pub fn constraint(self, metric: &str, constraint: &str) -> String {
        if self.only { metric.to_owned() } else { format!("{metric}_{constraint}") }
    }

    /// A metric of a constraint for one kind of prompts. No name of a constraint has a dot, so that the two are told apart.
    #[must_use]
    pub fn constraint_kind(self, metric: &str, constraint: &str, kind: &str) -> String {
        if self.only { format!("{metric}_{kind}") } else { format!("{metric}_{constraint}.{kind}") }
    }

    /// The numbers of an update.
    #[must_use]
    pub fn update(self, update: &UpdateMetrics) -> Vec<(String, f64)> {
        let UpdateMetrics { importance, kl, guards, phases, .. } = update;
        let mut metrics: Vec<(String, f64)> = [
            ("staleness_versions_mean", update.staleness_versions.0),
            ("staleness_versions_max", update.staleness_versions.1),
            ("importance_weight_mean", importance.weight_mean),
            ("importance_weight_max", importance.weight_max),
            ("importance_ess_ratio_token", importance.ess_ratio_token),
            ("importance_ess_ratio_sequence", importance.ess_ratio_sequence),
            ("importance_truncated_ratio", importance.truncated_ratio),
            ("importance_non_finite_tokens", importance.non_finite_tokens),
            ("rejected_ratio", update.rejected_ratio),
            ("kl_behaviour_proximal", kl.behaviour_proximal),
            ("kl_proximal_current", kl.proximal_current),
            ("kl_current_reference", kl.current_reference),
            ("kl_coefficient", update.kl_coefficient),
            ("entropy", update.entropy),
            ("clip_ratio", update.clip_ratio),
            ("loss_policy", update.policy_loss),
            ("grad_norm_policy", update.gradient_norm.0),
            ("grad_norm_critic", update.gradient_norm.1),
            ("updates_stopped_by_kl", guards.stopped_by_kl as f64),
            ("updates_skipped_rejected", guards.skipped_rejected as f64),
            ("updates_skipped_drift", guards.skipped_drift as f64),
            ("updates_skipped_non_finite", guards.skipped_non_finite as f64),
            ("logprob_seconds", phases.logprob),
            ("value_seconds", phases.value),
            ("policy_seconds", phases.policy),
            ("critic_seconds", phases.critic),
            ("optimizer_seconds", phases.optimizer),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        for (name, value) in [
            ("log_prob_gap", update.log_prob_gap),
            ("loss_ptx", update.ptx_loss),
            ("reference_kl_target", update.reference_kl_target),
        ] {
            metrics.extend(value.map(|value| (name.to_owned(), value)));
        }
        for StreamMetrics { stream, critic_loss, explained_variance } in &update.streams {
            metrics.push((format!("loss_critic_{}", stream.label()), *critic_loss));
            metrics.push((format!("explained_variance_{}", stream.label()), *explained_variance));
        }
        metrics
    }

    /// The numbers of a batch.
    #[must_use]
    pub fn batch(self, batch: &BatchMetrics) -> Vec<(String, f64)> {
        let mut metrics = vec![
            ("reward_mean".to_owned(), batch.reward_mean),
            ("response_length_mean".to_owned(), batch.response_length_mean),
            ("truncated_ratio".to_owned(), batch.truncated_ratio),
        ];
        for CostMetrics { constraint, mean, unsafe_ratio, by_kind } in &batch.costs {
            metrics.push((self.constraint("cost_mean", constraint), *mean));
            metrics.push((self.constraint("unsafe_ratio", constraint), *unsafe_ratio));
            let by_kind =
                by_kind.iter().map(|(kind, mean)| (self.constraint_kind("cost_mean", constraint, kind), *mean));
            metrics.extend(by_kind);
        }
        metrics
    }

    /// The numbers of the constraints' steps.
    #[must_use]
    pub fn steps(self, steps: &[DualStep]) -> Vec<(String, f64)> {
        steps.iter().flat_map(|step| step.metrics(self)).collect()
    }
}

/// A name that two numbers of a run with these constraints would have.
pub(crate) fn duplicate_name(constraints: &[&str]) -> Option<String> {
    let named = Named { only: constraints.len() == 1 };
    let streams =
        std::iter::once(Stream::Reward).chain(constraints.iter().map(|name| Stream::Cost((*name).to_owned())));
    let streams = streams.map(|stream| StreamMetrics { stream, critic_loss: 0.0, explained_variance: 0.0 }).collect();
    let steps: Vec<DualStep> = constraints.iter().map(|name| DualStep::named(name)).collect();
    let update = UpdateMetrics { streams, ..UpdateMetrics::default() };
    let batch = BatchMetrics::of(&[], constraints.iter().copied());
    let mut names: Vec<String> = [named.update(&update), named.batch(&batch), named.steps(&steps)]
        .concat()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    names.sort_unstable();
    names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0].clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use saddle_core::{PolicyVersion, Prompt, PromptOrdinal, Rollout};

    fn scored(kind: &str, costs: Vec<f32>) -> ScoredRollout {
        let prompt = Prompt { ordinal: PromptOrdinal(0), tokens: vec![1], kind: Some(kind.to_owned()) };
        let (tokens, log_probs, versions) = (vec![1, 2], vec![-1.0; 2], vec![PolicyVersion(0); 2]);
        let rollout = Rollout { prompt, tokens, log_probs, versions, finish: Finish::Length };
        ScoredRollout { rollout, reward: 0.5, costs, reference_log_probs: vec![-1.0; 2] }
    }

    #[test]
    fn constraints_are_told_apart_from_one_another_and_from_kinds_of_prompts() {
        for constraints in [&["cost", "hazardous_cost", "cost_hazardous"][..], &["cost"], &["a", "b_a", "a_b"]] {
            assert_eq!(duplicate_name(constraints), None);
        }
        assert_eq!(duplicate_name(&["reward"]).as_deref(), Some("explained_variance_reward"));
        assert_eq!(duplicate_name(&["x", "stderr_x"]).as_deref(), Some("cost_estimate_stderr_x"));
        let constraints = ["cost", "cost_hazardous"];
        let batch = BatchMetrics::of(&[scored("hazardous", vec![1.0, 2.0])], constraints.into_iter());
        let means = Named { only: false }.batch(&batch).into_iter().filter(|(name, _)| name.starts_with("cost_mean"));
        let means: Vec<(String, f64)> = means.collect();
        let expected = [
            ("cost_mean_cost", 1.0),
            ("cost_mean_cost.hazardous", 1.0),
            ("cost_mean_cost_hazardous", 2.0),
            ("cost_mean_cost_hazardous.hazardous", 2.0),
        ];
        assert_eq!(means, expected.map(|(name, value)| (name.to_owned(), value)));
    }

    #[test]
    fn a_cost_that_is_no_number_is_not_safe() {
        let batch = [scored("benign", vec![f32::NAN]), scored("benign", vec![-1.0]), scored("benign", vec![])];
        let metrics = BatchMetrics::of(&batch, ["cost"].into_iter());
        assert!((metrics.costs[0].unsafe_ratio - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!((metrics.reward_mean, metrics.truncated_ratio), (0.5, 1.0));
    }
}
