//! Supervised fine-tuning: the policy learns to give the demonstrated responses.

use crate::config::OptimizerSection;
use crate::encode::Sequence;
use crate::fitting::{Learns, LossAndShown, final_figures, fit};
use crate::{Observer, TrainingError};
use saddle_algorithms::losses::{LossAggregation, cross_entropy_loss};
use saddle_lm::{Parameters, Policy, SequenceBatch};

struct SupervisedPolicy(Policy);

impl Learns for SupervisedPolicy {
    type Row = Sequence;

    fn tokens(row: &Sequence) -> usize {
        row.length()
    }

    fn loss(&self, rows: &[&Sequence]) -> Result<LossAndShown, TrainingError> {
        let parts: Vec<_> = rows.iter().map(|row| row.parts()).collect();
        let batch = SequenceBatch::new(&parts, self.0.device())?;
        let forward = self.0.response_log_probs(&batch, 1.0)?;
        let loss = cross_entropy_loss(&forward.log_probs, batch.mask(), LossAggregation::PerSample)?;
        Ok((loss, Vec::new()))
    }

    fn replica(&self) -> Result<Self, TrainingError> {
        Ok(Self(self.0.replica()?))
    }

    fn parameters(&self) -> &Parameters {
        self.0.parameters()
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        self.0.parameters_mut()
    }
}

/// Trains `policy` on `train`, and returns it with its mean loss on `held_out`: cross-entropy a response token, in
/// nats, averaged over responses.
///
/// # Errors
/// [`TrainingError::Diverged`] on a loss, a gradient or a weight that is not finite; else if libtorch fails.
pub fn train_supervised(
    policy: Policy,
    train: &[Sequence],
    held_out: &[Sequence],
    section: &OptimizerSection,
    seed: u64,
    observer: &mut dyn Observer,
) -> Result<(Policy, Vec<(String, f64)>), TrainingError> {
    let mut learner = SupervisedPolicy(policy.trainable()?);
    fit(&mut learner, (train, held_out), section, seed, observer)?;
    let held_out = final_figures(&learner, held_out, section.micro_batch_tokens)?;
    Ok((learner.0.snapshot()?, held_out))
}
