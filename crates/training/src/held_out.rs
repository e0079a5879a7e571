//! Held-out rows while a stage trains: when they are measured, and what their loss says of going on.
//!
//! [`fit`](crate::fitting::fit) measures and tells the loss; what is here decides. It fails if the weights cannot be copied, or
//! if the loss is never a number.

use crate::TrainingError;
use crate::config::OptimizerSection;
use saddle_lm::Parameters;

/// About so many measurements a run when the configuration does not say.
const EVALUATIONS: u64 = 10;

/// How many steps lie between two measurements of `rows` held-out rows in a run of `steps` steps; none if there are no rows.
pub(crate) fn interval_steps(section: &OptimizerSection, steps: u64, rows: usize) -> Option<u64> {
    if rows == 0 {
        return None;
    }
    if section.evaluate_every_steps > 0 {
        return Some(section.evaluate_every_steps);
    }
    // A measurement is a forward pass, a third of a step's work: in this way it adds a third to a short run at most.
    let paid_for = rows.div_ceil(section.batch_rows) as u64;
    Some(steps.div_ceil(EVALUATIONS).max(paid_for))
}

/// Stops training when the held-out loss no longer falls, and keeps the weights with which it was least.
pub(crate) struct EarlyStopping {
    /// Measurements in a row without a fall that are waited for; 0 switches all of this off.
    patience: u64,
    without_fall: u64,
    best: Option<Best>,
}

/// The measurement with the least loss so far.
struct Best {
    step: u64,
    loss: f64,
    weights: Parameters,
}

impl EarlyStopping {
    /// Waits for `patience` measurements in a row; for ever if it is 0, and keeps nothing then.
    pub(crate) fn new(patience: u64) -> Self {
        Self { patience, without_fall: 0, best: None }
    }

    /// Takes the held-out `loss` of `weights` after step `step`. Returns whether to stop. A loss that is not finite is never
    /// the best.
    ///
    /// # Errors
    /// [`TrainingError::Diverged`] if it is time to stop and no loss was finite; else if libtorch fails.
    pub(crate) fn should_stop(&mut self, step: u64, loss: f64, weights: &Parameters) -> Result<bool, TrainingError> {
        if self.patience == 0 {
            return Ok(false);
        }
        let fell = loss.is_finite() && self.best.as_ref().is_none_or(|best| loss < best.loss);
        if fell {
            self.without_fall = 0;
            self.keep(step, loss, weights)?;
            return Ok(false);
        }
        self.without_fall += 1;
        if self.without_fall < self.patience {
            return Ok(false);
        }
        match self.best {
            Some(_) => Ok(true),
            None => Err(TrainingError::Diverged(format!(
                "the held-out loss was not finite in {} measurements up to step {step}; lower optimizer.learning_rate",
                self.without_fall
            ))),
        }
    }

    fn keep(&mut self, step: u64, loss: f64, weights: &Parameters) -> Result<(), TrainingError> {
        let kept = match self.best.take() {
            Some(Best { weights: mut kept, .. }) => {
                kept.copy_from(weights)?;
                kept
            }
            None => weights.snapshot()?,
        };
        self.best = Some(Best { step, loss, weights: kept });
        Ok(())
    }

    /// Gives `weights`, which training left after step `last`, the values of the best measurement. Returns what there is to
    /// say about it: nothing if they are the best.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub(crate) fn go_back(self, last: u64, weights: &mut Parameters) -> Result<Option<String>, TrainingError> {
        let Some(Best { step, loss, weights: kept }) = self.best.filter(|best| best.step != last) else {
            return Ok(None);
        };
        weights.copy_from(&kept)?;
        let why = if self.without_fall < self.patience {
            "training ended".to_owned()
        } else {
            format!("training stopped early: the held-out loss had not fallen for {} measurements", self.patience)
        };
        Ok(Some(format!(
            "{why} after step {last}; went back to step {step}, whose held-out loss, {loss:.4}, was the least"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use tch::{Device, Kind, Tensor};

    fn weights(value: f32) -> Parameters {
        let weights = BTreeMap::from([("w".to_owned(), Tensor::from_slice(&[value]))]);
        Parameters::new(&weights, Kind::Float, Device::Cpu).unwrap()
    }

    /// Tells the losses, one a step, of weights that are as large as the step. Returns the step after which training stops
    /// or ends, the weights then, and the note.
    fn check(patience: u64, losses: &[f64]) -> Result<(u64, f64, Option<String>), TrainingError> {
        let mut stopping = EarlyStopping::new(patience);
        let mut last = 0;
        for loss in losses {
            last += 1;
            if stopping.should_stop(last, *loss, &weights(last as f32))? {
                break;
            }
        }
        let mut left = weights(last as f32);
        let note = stopping.go_back(last, &mut left)?;
        Ok((last, left.get("w")?.double_value(&[0]), note))
    }

    #[test]
    fn training_stops_once_the_loss_has_not_fallen_for_long_enough_and_goes_back() {
        let (last, left, note) = check(2, &[3.0, 2.0, 2.0, 2.5, 1.0]).unwrap();
        assert_eq!((last, left), (4, 2.0));
        let expected = "training stopped early: the held-out loss had not fallen for 2 measurements after step 4; \
                        went back to step 2, whose held-out loss, 2.0000, was the least";
        assert_eq!(note.as_deref(), Some(expected));
    }

    #[test]
    fn a_fall_starts_the_count_anew() {
        let (last, left, note) = check(2, &[3.0, 4.0, 2.0, 2.5, 1.0]).unwrap();
        assert_eq!((last, left, note), (5, 5.0, None));
    }

    #[test]
    fn a_run_that_takes_all_its_steps_ends_with_the_best_weights_too() {
        let (last, left, note) = check(3, &[3.0, 2.0, 4.0]).unwrap();
        assert_eq!((last, left), (3, 2.0));
        assert!(note.as_deref().is_some_and(|note| note.starts_with("training ended after step 3; ")), "{note:?}");
    }

    #[test]
    fn without_patience_nothing_is_kept_and_nothing_stops() {
        assert_eq!(check(0, &[1.0, 2.0, 3.0, f64::NAN]).unwrap(), (4, 4.0, None));
    }

    #[test]
    fn a_loss_that_is_not_finite_is_never_the_best() {
        for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let (last, left, _) = check(2, &[odd, 3.0, odd, 4.0]).unwrap();
            assert_eq!((last, left), (4, 2.0), "{odd}");
            let error = check(2, &[odd, odd, 1.0]).unwrap_err().to_string();
            assert!(error.contains("not finite in 2 measurements up to step 2"), "{error}");
        }
    }

    #[test]
    fn rows_are_measured_ten_times_a_run_unless_that_is_more_than_is_trained_on() {
        let every = |steps, rows, evaluate_every_steps| {
            let section = OptimizerSection { batch_rows: 16, evaluate_every_steps, ..OptimizerSection::default() };
            interval_steps(&section, steps, rows)
        };
        assert_eq!(every(1000, 512, 0), Some(100));
        assert_eq!(every(1001, 512, 0), Some(101));
        assert_eq!(every(50, 512, 0), Some(32), "32 steps train on 512 rows");
        assert_eq!(every(3, 5, 0), Some(1));
        assert_eq!(every(50, 512, 7), Some(7));
        assert_eq!((every(50, 0, 7), every(50, 0, 0)), (None, None));
    }
}
