//! The frozen models around a policy in training, and means over a batch that they have scored.

use crate::TrainingError;
use crate::config::TrainConfig;
use crate::dual::Dual;
use crate::models::Scorer;
use crate::observer::constraint_metric;
use crate::scoring::reference_log_probs;
use saddle_core::{Finish, Rollout, ScoredRollout};
use saddle_lm::Policy;

/// The frozen models around a policy in training.
#[derive(Debug)]
pub struct Judges {
    /// The policy as it was when training began.
    pub reference: Policy,
    /// Scores how helpful a response is.
    pub reward: Scorer,
    /// Score how harmful it is, one for each constraint.
    pub costs: Vec<Scorer>,
}

/// Scores every rollout with every judge.
pub(crate) fn judge(
    config: &TrainConfig,
    judges: &Judges,
    rollouts: Vec<Rollout>,
) -> Result<Vec<ScoredRollout>, TrainingError> {
    let budget = config.ppo.micro_batch_tokens;
    let rewards = judges.reward.score(&rollouts, budget)?;
    let costs = judges.costs.iter().map(|scorer| scorer.score(&rollouts, budget)).collect::<Result<Vec<_>, _>>()?;
    let references = reference_log_probs(&judges.reference, &rollouts, config.generation.temperature, budget)?;
    let scored =
        rollouts.into_iter().zip(references).enumerate().map(|(row, (rollout, reference_log_probs))| ScoredRollout {
            rollout,
            reward: rewards[row],
            costs: costs.iter().map(|scores| scores[row]).collect(),
            reference_log_probs,
        });
    Ok(scored.collect())
}

/// Means over a batch as it was sampled.
#[must_use]
pub fn describe(scored: &[ScoredRollout], duals: &[Dual]) -> Vec<(String, f64)> {
    let only = duals.len() == 1;
    let mean = |value: &dyn Fn(&ScoredRollout) -> f64| scored.iter().map(value).sum::<f64>() / scored.len() as f64;
    let mut metrics = vec![
        ("reward_mean".to_owned(), mean(&|each| f64::from(each.reward))),
        ("response_length_mean".to_owned(), mean(&|each| each.rollout.tokens.len() as f64)),
        ("truncated_ratio".to_owned(), mean(&|each| f64::from(u8::from(each.rollout.finish == Finish::Length)))),
    ];
    for (index, dual) in duals.iter().enumerate() {
        let mut push = |name: &str, value: f64| metrics.push((constraint_metric(name, dual.name(), only), value));
        push("cost_mean", mean(&|each| f64::from(each.costs[index])));
        push("unsafe_ratio", mean(&|each| f64::from(u8::from(each.costs[index] > 0.0))));
        let mut kinds: Vec<&str> = scored.iter().filter_map(|each| each.rollout.prompt.kind.as_deref()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for kind in kinds {
            let costs: Vec<f64> = scored
                .iter()
                .filter(|each| each.rollout.prompt.kind.as_deref() == Some(kind))
                .map(|each| f64::from(each.costs[index]))
                .collect();
            push(&format!("cost_mean_{kind}"), costs.iter().sum::<f64>() / costs.len() as f64);
        }
    }
    metrics
}
