//! Direct preference optimisation: a policy from preference labels, without a reward model (arXiv 2305.18290).
//!
//! The reference is the policy as it was at the start. It never changes, so its log-probs of all responses are computed
//! once, and no second model is kept.

use crate::config::{DpoSection, OptimizerSection};
use crate::encode::{Pair, pair_batch};
use crate::fitting::{Learns, LossAndShown, final_figures, fit};
use crate::scoring::sequence_log_probs;
use crate::{Observer, TrainingError};
use saddle_algorithms::losses::{AnswerLogProbs, answer_log_probs, direct_preference_loss};
use saddle_lm::{Parameters, Policy};
use tch::{Kind, Tensor};

struct PreferringPolicy {
    policy: Policy,
    kl_coefficient: f64,
}

/// A pair with log π_ref of either response, the preferred one first.
struct ReferencedPair {
    pair: Pair,
    reference: [f32; 2],
}

impl Learns for PreferringPolicy {
    type Row = ReferencedPair;

    fn tokens(row: &ReferencedPair) -> usize {
        row.pair.tokens()
    }

    fn loss(&self, rows: &[&ReferencedPair]) -> Result<LossAndShown, TrainingError> {
        let batch = pair_batch(rows.iter().map(|row| &row.pair), self.policy.device())?;
        let log_probs = self.policy.response_log_probs(&batch, 1.0)?.log_probs;
        let answers = answer_log_probs(&log_probs, batch.mask())?;
        let side = |index: usize| -> Result<(Tensor, Tensor), TrainingError> {
            let reference: Vec<f32> = rows.iter().map(|row| row.reference[index]).collect();
            let count = rows.len() as i64;
            let reference = Tensor::f_from_slice(&reference)?.f_to_device(self.policy.device())?;
            Ok((answers.f_narrow(0, index as i64 * count, count)?, reference))
        };
        let (better, worse) = (side(0)?, side(1)?);
        let [better, worse] = [&better, &worse].map(|(policy, reference)| AnswerLogProbs { policy, reference });
        let result = direct_preference_loss(better, worse, self.kl_coefficient)?;
        let margin = result.better_rewards.f_sub(&result.worse_rewards)?.f_mean(Kind::Float)?.f_double_value(&[])?;
        Ok((result.loss, vec![("implicit_reward_accuracy", result.accuracy), ("implicit_reward_margin", margin)]))
    }

    fn replica(&self) -> Result<Self, TrainingError> {
        Ok(Self { policy: self.policy.replica()?, ..*self })
    }

    fn parameters(&self) -> &Parameters {
        self.policy.parameters()
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        self.policy.parameters_mut()
    }
}

/// Trains `policy` on the pairs `train`, and returns it with its figures on `held_out`: the loss, the share of pairs in
/// which the preferred response has the larger implicit reward, and the mean margin between the two rewards.
///
/// # Errors
/// [`TrainingError::Diverged`] on a loss, a gradient or a weight that is not finite; else if libtorch fails.
pub fn train_directly(
    policy: Policy,
    (train, held_out): (Vec<Pair>, Vec<Pair>),
    dpo: &DpoSection,
    optimizer: &OptimizerSection,
    seed: u64,
    observer: &mut dyn Observer,
) -> Result<(Policy, Vec<(String, f64)>), TrainingError> {
    let budget = optimizer.micro_batch_tokens;
    let (train, held_out) = (refer(&policy, train, budget)?, refer(&policy, held_out, budget)?);
    let mut learner = PreferringPolicy { policy: policy.trainable()?, kl_coefficient: dpo.kl_coefficient };
    fit(&mut learner, (&train, &held_out), optimizer, seed, observer)?;
    let figures = final_figures(&learner, &held_out, budget)?;
    Ok((learner.policy.snapshot()?, figures))
}

/// Puts the reference's log-probs beside each pair.
fn refer(reference: &Policy, pairs: Vec<Pair>, budget_tokens: usize) -> Result<Vec<ReferencedPair>, TrainingError> {
    let responses: Vec<_> = pairs.iter().flat_map(|pair| [&pair.preferred, &pair.other]).collect();
    let log_probs = sequence_log_probs(reference, &responses, budget_tokens)?;
    let log_probs = log_probs.chunks_exact(2).map(|each| [each[0], each[1]]);
    Ok(pairs.into_iter().zip(log_probs).map(|(pair, reference)| ReferencedPair { pair, reference }).collect())
}
