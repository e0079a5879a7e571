//! The loop that every supervised stage runs: shuffled batches, one optimiser step a batch.

use crate::config::OptimizerSection;
use crate::workers::{Replica, shares, side_by_side};
use crate::{Observer, TrainingError};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use saddle_lm::{AdamW, Parameters, learning_rate_factor, micro_batches};
use tch::Tensor;

/// Named means over the rows of a step.
pub(crate) type Shown = Vec<(String, f64)>;

/// A loss with gradients, and named numbers to show beside it, each a mean over the same rows.
pub(crate) type LossAndShown = (Tensor, Vec<(&'static str, f64)>);

/// Something with parameters that learns from rows.
pub(crate) trait Learns {
    /// What a row is.
    type Row;

    /// Tokens that a row puts through the model, for micro-batches.
    fn tokens(row: &Self::Row) -> usize;

    /// The mean loss of some rows.
    fn loss(&self, rows: &[&Self::Row]) -> Result<LossAndShown, TrainingError>;

    /// A twin over the same weights, whose operations record their gradients apart.
    fn replica(&self) -> Result<Self, TrainingError>
    where
        Self: Sized;

    /// What the optimiser changes.
    fn parameters(&self) -> &Parameters;

    /// The same, to change.
    fn parameters_mut(&mut self) -> &mut Parameters;
}

/// How many steps `rows` rows take.
pub(crate) fn step_count(section: &OptimizerSection, rows: usize) -> u64 {
    let all = (rows.div_ceil(section.batch_rows) * section.epochs) as u64;
    if section.max_steps == 0 { all } else { all.min(section.max_steps) }
}

/// Trains `model` on `rows` as `section` says.
pub(crate) fn fit<M: Learns + Send>(
    model: &mut M,
    rows: &[M::Row],
    section: &OptimizerSection,
    seed: u64,
    observer: &mut dyn Observer,
) -> Result<(), TrainingError>
where
    M::Row: Sync,
{
    let mut optimizer = AdamW::new(section.adamw.clone(), model.parameters())?;
    let mut replicas = replicas(model, &mut optimizer, section.workers)?;
    let steps = step_count(section, rows.len());
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut step = 0;
    while step < steps {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.shuffle(&mut random);
        for batch in order.chunks(section.batch_rows).take((steps - step) as usize) {
            let batch: Vec<&M::Row> = batch.iter().map(|row| &rows[*row]).collect();
            let mut metrics = accumulate(&mut replicas, &batch, section.micro_batch_tokens)?;
            let rate = section.learning_rate * learning_rate_factor(section.decay, section.warmup_ratio, step, steps);
            let taken = optimizer.step(model.parameters_mut(), rate)?;
            step += 1;
            if !taken.taken {
                return Err(TrainingError::Diverged(format!(
                    "the gradient of step {step} is not finite; lower optimizer.learning_rate"
                )));
            }
            metrics.extend([("learning_rate".to_owned(), rate), ("grad_norm".to_owned(), taken.gradient_norm)]);
            observer.step(step, steps, &metrics);
        }
    }
    Ok(())
}

/// One for each of `count` workers.
fn replicas<M: Learns>(model: &M, optimizer: &mut AdamW, count: usize) -> Result<Vec<Replica<M>>, TrainingError> {
    (0..count).map(|worker| Ok(Replica { model: model.replica()?, sum: optimizer.sum(worker)? })).collect()
}

/// Adds the gradient of the mean loss of `batch` to the sums of `replicas`. Returns the means of what it shows.
fn accumulate<M: Learns + Send>(
    replicas: &mut [Replica<M>],
    batch: &[&M::Row],
    budget_tokens: usize,
) -> Result<Shown, TrainingError>
where
    M::Row: Sync,
{
    let shares = shares(&batch.iter().map(|row| M::tokens(row)).collect::<Vec<_>>(), replicas.len());
    let parts = side_by_side(replicas.iter_mut().zip(shares).collect(), |(replica, rows)| {
        let rows: Vec<&M::Row> = rows.into_iter().map(|row| batch[row]).collect();
        means(&replica.model, &rows, batch.len(), budget_tokens, |loss| {
            Ok(replica.model.parameters().add_gradient(loss, &replica.sum)?)
        })
    })?;
    let mut whole = Shown::new();
    parts.into_iter().for_each(|part| add(&mut whole, part));
    Ok(whole)
}

/// Means of what [`Learns::loss`] shows over all `rows`, without learning from them.
pub(crate) fn evaluate<M: Learns>(model: &M, rows: &[M::Row], budget_tokens: usize) -> Result<Shown, TrainingError> {
    let _guard = tch::no_grad_guard();
    means(model, &rows.iter().collect::<Vec<_>>(), rows.len(), budget_tokens, |_| Ok(()))
}

/// What `rows` add to the means of `whole` rows; `learn` is given what they add to the mean loss.
fn means<M: Learns>(
    model: &M,
    rows: &[&M::Row],
    whole: usize,
    budget_tokens: usize,
    learn: impl Fn(&Tensor) -> Result<(), TrainingError>,
) -> Result<Shown, TrainingError> {
    let mut means = Shown::new();
    for group in micro_batches(&rows.iter().map(|row| M::tokens(row)).collect::<Vec<_>>(), budget_tokens) {
        let share = group.len() as f64 / whole as f64;
        let group: Vec<&M::Row> = group.into_iter().map(|row| rows[row]).collect();
        let (loss, shown) = model.loss(&group)?;
        learn(&loss.f_mul_scalar(share)?)?;
        let shown = std::iter::once(("loss", loss.f_double_value(&[])?)).chain(shown);
        add(&mut means, shown.map(|(name, value)| (name.to_owned(), share * value)));
    }
    Ok(means)
}

/// Adds named numbers to those of the same names.
fn add(sums: &mut Shown, more: impl IntoIterator<Item = (String, f64)>) {
    for (name, value) in more {
        match sums.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += value,
            None => sums.push((name, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use saddle_lm::AdamWConfig;
    use std::collections::BTreeMap;
    use tch::{Device, Kind};

    /// A line through the origin, fitted to points.
    struct Line(Parameters);

    impl Learns for Line {
        type Row = (f32, f32);

        fn tokens(_: &Self::Row) -> usize {
            1
        }

        fn loss(&self, rows: &[&Self::Row]) -> Result<LossAndShown, TrainingError> {
            let column = |value: fn(&(f32, f32)) -> f32| {
                Tensor::from_slice(&rows.iter().map(|row| value(row)).collect::<Vec<_>>())
            };
            let error = self.0.get("slope")? * column(|row| row.0) - column(|row| row.1);
            Ok((error.square().mean(Kind::Float), vec![("rows", rows.len() as f64)]))
        }

        fn replica(&self) -> Result<Self, TrainingError> {
            Ok(Self(self.0.replica()?))
        }

        fn parameters(&self) -> &Parameters {
            &self.0
        }

        fn parameters_mut(&mut self) -> &mut Parameters {
            &mut self.0
        }
    }

    fn line() -> Line {
        let weights = BTreeMap::from([("slope".to_owned(), Tensor::from_slice(&[0.5f32]))]);
        Line(Parameters::new(&weights, Kind::Float, Device::Cpu).unwrap().trainable())
    }

    /// The loss over rows (x, 3x) is (slope − 3)² · mean x², and its gradient 2 (slope − 3) · mean x².
    #[test]
    fn the_gradient_does_not_depend_on_the_number_of_workers() {
        let rows: Vec<(f32, f32)> = (1..=7).map(|x| (x as f32, 3.0 * x as f32)).collect();
        let batch: Vec<_> = rows.iter().collect();
        for count in 1..=9 {
            let model = line();
            let mut optimizer = AdamW::new(AdamWConfig::default(), model.parameters()).unwrap();
            let shown = accumulate(&mut replicas(&model, &mut optimizer, count).unwrap(), &batch, 2).unwrap();
            let gradient: f64 = (0..count).map(|worker| optimizer.sum(worker).unwrap().double_value(&[0])).sum();
            assert!((gradient + 100.0).abs() < 1e-3, "{count} workers: {gradient}");
            assert!((shown[0].1 - 125.0).abs() < 1e-3, "{count} workers: {shown:?}");
        }
    }

    #[test]
    fn workers_see_the_weights_of_the_model_they_were_made_from() {
        let mut model = line();
        let mut optimizer = AdamW::new(AdamWConfig::default(), model.parameters()).unwrap();
        let mut replicas = replicas(&model, &mut optimizer, 2).unwrap();
        let three = BTreeMap::from([("slope".to_owned(), Tensor::from_slice(&[3.0f32]))]);
        model.parameters_mut().copy_from(&Parameters::new(&three, Kind::Float, Device::Cpu).unwrap()).unwrap();
        accumulate(&mut replicas, &[&(1.0, 3.0), &(2.0, 6.0)], 8).unwrap();
        assert_eq!([0, 1].map(|worker| optimizer.sum(worker).unwrap().double_value(&[0])), [0.0; 2]);
    }
}
