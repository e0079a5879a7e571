//! The loop that every supervised stage runs: shuffled batches, one optimiser step a batch, and a look at held-out rows now and
//! then.
//!
//! It ends with [`TrainingError::Diverged`] as soon as a loss, a gradient or a weight is not finite.

use crate::config::OptimizerSection;
use crate::held_out::{EarlyStopping, interval_steps};
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

/// What is put before the name of a figure that was measured on held-out rows.
const HELD_OUT: &str = "held_out_";

/// Trains `model` on `rows` as `section` says, measuring the first of `held_out` on the way.
///
/// # Errors
/// [`TrainingError::Diverged`] with the step after which something is not finite; else if libtorch fails.
pub(crate) fn fit<M: Learns + Send>(
    model: &mut M,
    (rows, held_out): (&[M::Row], &[M::Row]),
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
    let measured = &held_out[..held_out.len().min(section.evaluate_rows)];
    let interval = interval_steps(section, steps, measured.len());
    let mut stopping = EarlyStopping::new(section.early_stopping_evaluations);
    let mut stops = false;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut step = 0;
    while step < steps && !stops {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.shuffle(&mut random);
        for batch in order.chunks(section.batch_rows).take((steps - step) as usize) {
            let batch: Vec<&M::Row> = batch.iter().map(|row| &rows[*row]).collect();
            let mut metrics = accumulate(&mut replicas, &batch, section.micro_batch_tokens)?;
            require_finite(loss_of(&metrics), || format!("the loss of step {}", step + 1))?;
            let rate = section.learning_rate * learning_rate_factor(section.decay, section.warmup_ratio, step, steps);
            let taken = optimizer.step(model.parameters_mut(), rate)?;
            step += 1;
            require_finite(taken.gradient_norm, || format!("the gradient of step {step}"))?;
            metrics.extend([("learning_rate".to_owned(), rate), ("grad_norm".to_owned(), taken.gradient_norm)]);
            if interval.is_some_and(|interval| step == steps || step.is_multiple_of(interval)) {
                let figures = evaluate(model, measured, section.micro_batch_tokens)?;
                stops = stopping.should_stop(step, loss_of(&figures), model.parameters())?;
                metrics.extend(figures.into_iter().map(|(name, value)| (format!("{HELD_OUT}{name}"), value)));
            }
            observer.step(step, steps, &metrics);
            stops |= step < steps && observer.is_told_to_leave();
            if stops {
                break;
            }
        }
    }
    // The last step's weights have been in no loss that was looked at.
    let flat = model.parameters().flat();
    for extreme in [flat.f_min()?, flat.f_max()?] {
        require_finite(extreme.f_double_value(&[])?, || format!("a weight after step {step}"))?;
    }
    if let Some(note) = stopping.go_back(step, model.parameters_mut())? {
        observer.note(&note);
    }
    Ok(())
}

/// The mean loss among named means.
fn loss_of(figures: &Shown) -> f64 {
    figures.iter().find(|(name, _)| name == "loss").map_or(f64::NAN, |(_, value)| *value)
}

/// Refuses a number that is not finite.
fn require_finite(value: f64, what: impl FnOnce() -> String) -> Result<(), TrainingError> {
    if value.is_finite() {
        return Ok(());
    }
    Err(TrainingError::Diverged(format!("{} is not finite; lower optimizer.learning_rate", what())))
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

/// The figures that a stage ends with: [`evaluate`] over all held-out rows.
///
/// # Errors
/// [`TrainingError::Diverged`] if the loss is not finite; else if libtorch fails.
pub(crate) fn final_figures<M: Learns>(
    model: &M,
    held_out: &[M::Row],
    budget_tokens: usize,
) -> Result<Shown, TrainingError> {
    let figures = evaluate(model, held_out, budget_tokens)?;
    require_finite(loss_of(&figures), || "the held-out loss after training".to_owned())?;
    Ok(figures)
}

/// Means of what [`Learns::loss`] shows over all `rows`, without learning from them.
fn evaluate<M: Learns>(model: &M, rows: &[M::Row], budget_tokens: usize) -> Result<Shown, TrainingError> {
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
    use saddle_lm::{AdamWConfig, Decay};
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

    /// Steps of constant length 0.01 over ten batches of two rows an epoch.
    fn section() -> OptimizerSection {
        OptimizerSection {
            learning_rate: 0.01,
            warmup_ratio: 0.0,
            decay: Decay::Constant,
            batch_rows: 2,
            epochs: 2,
            ..OptimizerSection::default()
        }
    }

    /// Rows on the line through the origin of slope `slope`.
    fn rows_of(slope: f32) -> Vec<(f32, f32)> {
        (1..=20).map(|x| (x as f32 / 10.0, slope * x as f32 / 10.0)).collect()
    }

    /// What a run told.
    #[derive(Default)]
    struct Told {
        rows: Vec<(u64, Shown)>,
        notes: Vec<String>,
    }

    impl Observer for Told {
        fn step(&mut self, step: u64, _: u64, metrics: &[(String, f64)]) {
            self.rows.push((step, metrics.to_vec()));
        }

        fn note(&mut self, message: &str) {
            self.notes.push(message.to_owned());
        }
    }

    /// Fits a line to rows of slope 3. Returns its slope and what was told.
    fn fitted(held_out: &[(f32, f32)], section: &OptimizerSection) -> (f64, Told) {
        let (mut model, mut told) = (line(), Told::default());
        fit(&mut model, (&rows_of(3.0), held_out), section, 7, &mut told).unwrap();
        (model.0.get("slope").unwrap().double_value(&[0]), told)
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

    #[test]
    fn measuring_on_the_way_changes_no_bit_of_the_weights() {
        for workers in [1, 2] {
            let run = |evaluate_rows, early_stopping_evaluations| {
                let section = OptimizerSection { workers, evaluate_rows, early_stopping_evaluations, ..section() };
                fitted(&rows_of(3.0), &section).0
            };
            let alone = run(0, 0);
            assert_ne!(alone, 0.5, "something was learnt");
            assert_eq!([run(5, 0), run(512, 0), run(512, 3)], [alone; 3], "{workers} workers");
        }
    }

    #[test]
    fn held_out_figures_stand_in_the_row_of_their_step() {
        let (_, told) =
            fitted(&rows_of(3.0), &OptimizerSection { evaluate_every_steps: 8, evaluate_rows: 5, ..section() });
        let held_out =
            |metrics: &Shown| metrics.iter().filter(|(name, _)| name.starts_with(HELD_OUT)).cloned().collect::<Shown>();
        let measured: Vec<(u64, Shown)> = told
            .rows
            .iter()
            .map(|(step, metrics)| (*step, held_out(metrics)))
            .filter(|(_, found)| !found.is_empty())
            .collect();
        assert_eq!(
            measured.iter().map(|(step, _)| *step).collect::<Vec<_>>(),
            [8, 16, 20],
            "the last step is measured too"
        );
        for (step, figures) in &measured {
            assert_eq!(
                figures.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
                ["held_out_loss", "held_out_rows"]
            );
            assert_eq!(figures[1].1, 5.0, "the first five rows at step {step}: {figures:?}");
        }
        assert!(measured[2].1[0].1 < measured[0].1[0].1, "the loss falls: {measured:?}");
        assert!(told.notes.is_empty(), "{:?}", told.notes);
    }

    /// Held-out rows of slope −1 are the worse fitted, the longer a line is fitted to rows of slope 3.
    #[test]
    fn training_that_no_longer_helps_stops_and_goes_back() {
        let stopping = OptimizerSection { evaluate_every_steps: 3, early_stopping_evaluations: 2, ..section() };
        let (slope, told) = fitted(&rows_of(-1.0), &stopping);
        assert_eq!(told.rows.last().unwrap().0, 9, "the best is after step 3, two more after 6 and 9");
        assert_eq!(told.notes.len(), 1);
        assert!(told.notes[0].contains("2 measurements after step 9; went back to step 3"), "{:?}", told.notes);
        let (short, _) = fitted(&[], &OptimizerSection { max_steps: 3, ..section() });
        assert_eq!(slope, short, "these are the weights of step 3");
    }

    #[test]
    fn a_loss_that_is_not_finite_ends_training_before_its_step() {
        let (mut model, mut told) = (line(), Told::default());
        let error = fit(&mut model, (&[(1.0, f32::NAN)], &[]), &section(), 0, &mut told).unwrap_err();
        assert_eq!(error.to_string(), "the loss of step 1 is not finite; lower optimizer.learning_rate");
        assert!(told.rows.is_empty());
        assert_eq!(model.0.get("slope").unwrap().double_value(&[0]), 0.5);
    }

    #[test]
    fn weights_that_are_not_finite_after_the_last_step_are_no_success() {
        let section = OptimizerSection { learning_rate: 1e39, epochs: 1, ..section() };
        let error = fit(&mut line(), (&[(1.0, 3.0)], &[]), &section, 0, &mut Told::default()).unwrap_err();
        assert_eq!(error.to_string(), "a weight after step 1 is not finite; lower optimizer.learning_rate");
    }

    #[test]
    fn held_out_figures_at_the_end_must_be_finite() {
        let error = final_figures(&line(), &[(f32::INFINITY, 3.0)], 8).unwrap_err().to_string();
        assert!(error.contains("the held-out loss after training is not finite"), "{error}");
    }
}
