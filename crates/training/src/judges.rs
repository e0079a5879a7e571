//! The frozen models around a policy in training.

use crate::TrainingError;
use crate::config::TrainConfig;
use crate::models::Scorer;
use crate::scoring::reference_log_probs;
use saddle_core::{Rollout, ScoredRollout};
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
