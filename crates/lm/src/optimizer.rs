//! AdamW (Loshchilov and Hutter, arXiv 1711.05101) over a flat parameter buffer, with a state that can be saved.

use crate::{LmError, Parameters};
use saddle_core::Problems;
use saddle_libtorch::kernels::{self, AdamWStep};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad_guard};

/// A step goes through the weights in parts of so many numbers: what is in between then stays in a processor's cache.
const PART_NUMBERS: usize = 1 << 19;

/// Settings of AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the squared mean.
    pub epsilon: f64,
    /// Weights shrink by this times the learning rate a step.
    pub weight_decay: f64,
    /// A gradient with a larger norm is scaled down to it; zero means no limit.
    pub max_gradient_norm: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.0, max_gradient_norm: 1.0 }
    }
}

impl AdamWConfig {
    /// Everything that is wrong with the values.
    #[must_use]
    pub fn validate(&self) -> Problems {
        let mut problems = Problems::default();
        for (key, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            problems.require((0.0..1.0).contains(&beta), key, format!("must be in 0..1, is {beta}"));
        }
        let epsilon = self.epsilon;
        problems.require(epsilon.is_finite() && epsilon > 0.0, "epsilon", format!("must be positive, is {epsilon}"));
        for (key, value) in [("weight_decay", self.weight_decay), ("max_gradient_norm", self.max_gradient_norm)] {
            problems.require(value.is_finite() && value >= 0.0, key, format!("must be zero or more, is {value}"));
        }
        problems
    }
}

/// An AdamW optimiser for one set of parameters. Gradients of micro-batches are added up until a step is taken, in a sum for
/// each thread that computes some.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    sums: Vec<Tensor>,
    mean: Tensor,
    square: Tensor,
    steps: u64,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// False if the gradient held an infinity or a NaN: nothing was changed then.
    pub taken: bool,
}

impl AdamW {
    /// An optimiser that has seen no step yet.
    ///
    /// # Errors
    /// Fails if the memory for its state cannot be had.
    pub fn new(config: AdamWConfig, parameters: &Parameters) -> Result<Self, LmError> {
        let zeros = || parameters.flat().f_zeros_like();
        Ok(Self { config, sums: vec![zeros()?], mean: zeros()?, square: zeros()?, steps: 0 })
    }

    /// Adds d`loss` / d`parameters` to the gradient of the coming step.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn accumulate(&mut self, parameters: &Parameters, loss: &Tensor) -> Result<(), LmError> {
        parameters.add_gradient(loss, &self.sums[0])
    }

    /// Where `thread` adds up its part of the gradient of the coming step, flat as [`Parameters::add_gradient`] does it. The
    /// first is also where [`Self::accumulate`] adds.
    ///
    /// # Errors
    /// Fails if the memory for it cannot be had.
    pub fn sum(&mut self, thread: usize) -> Result<Tensor, LmError> {
        while self.sums.len() <= thread {
            self.sums.push(self.mean.f_zeros_like()?);
        }
        Ok(self.sums[thread].shallow_clone())
    }

    /// Changes `parameters` by the gradient added up so far, at `learning_rate`, and starts a new sum. A gradient that
    /// is not finite changes nothing.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn step(&mut self, parameters: &mut Parameters, learning_rate: f64) -> Result<Step, LmError> {
        let _guard = no_grad_guard();
        self.join_sums()?;
        let gradient_norm = self.sums[0].f_norm()?.f_double_value(&[])?;
        if !gradient_norm.is_finite() {
            self.discard()?;
            return Ok(Step { gradient_norm, taken: false });
        }
        self.steps += 1;
        if parameters.flat().device() == Device::Cpu {
            self.step_on_cpu(parameters.flat(), gradient_norm, learning_rate)?;
            return Ok(Step { gradient_norm, taken: true });
        }
        let count = self.mean.numel();
        for start in (0..count).step_by(PART_NUMBERS) {
            let length = PART_NUMBERS.min(count - start) as i64;
            self.step_part(parameters.flat(), (start as i64, length), gradient_norm, learning_rate)?;
        }
        Ok(Step { gradient_norm, taken: true })
    }

    /// Leaves the whole gradient in the first sum, and nothing in the others.
    fn join_sums(&mut self) -> Result<(), LmError> {
        let (whole, parts) = self.sums.split_first_mut().expect("there is always one");
        for part in parts {
            let _ = whole.f_add_(part)?;
            let _ = part.f_zero_()?;
        }
        Ok(())
    }

    fn step_on_cpu(&mut self, flat: &Tensor, gradient_norm: f64, rate: f64) -> Result<(), LmError> {
        let AdamWConfig { beta1, beta2, epsilon, weight_decay, max_gradient_norm } = self.config;
        let clipped = max_gradient_norm > 0.0 && gradient_norm > max_gradient_norm;
        let scale = if clipped { max_gradient_norm / gradient_norm } else { 1.0 };
        let step = AdamWStep { scale, betas: (beta1, beta2), steps: self.steps, epsilon, rate, weight_decay };
        let means = (&mut self.mean, &mut self.square);
        Ok(kernels::adamw(&step, &mut flat.shallow_clone(), &mut self.sums[0], means)?)
    }

    /// The step of the numbers `start..start + length`, whose sum of gradients is zero then.
    fn step_part(
        &mut self,
        flat: &Tensor,
        (start, length): (i64, i64),
        gradient_norm: f64,
        learning_rate: f64,
    ) -> Result<(), LmError> {
        let part = |whole: &Tensor| whole.f_narrow(0, start, length);
        let (mut gradient, mut flat) = (part(&self.sums[0])?, part(flat)?);
        let (mut mean, mut square) = (part(&self.mean)?, part(&self.square)?);
        let AdamWConfig { beta1, beta2, epsilon, weight_decay, max_gradient_norm } = self.config;
        if max_gradient_norm > 0.0 && gradient_norm > max_gradient_norm {
            let _ = gradient.f_mul_scalar_(max_gradient_norm / gradient_norm)?;
        }
        let _ = mean.f_mul_scalar_(beta1)?.f_add_(&gradient.f_mul_scalar(1.0 - beta1)?)?;
        let _ = square.f_mul_scalar_(beta2)?.f_addcmul_(&gradient, &gradient.f_mul_scalar(1.0 - beta2)?)?;
        let exponent = self.steps as f64;
        let mean_correction = 1.0 - beta1.powf(exponent);
        let square_correction = 1.0 - beta2.powf(exponent);
        let denominator = square.f_div_scalar(square_correction)?.f_sqrt()?.f_add_scalar(epsilon)?;
        let update = mean.f_div(&denominator)?.f_mul_scalar(-learning_rate / mean_correction)?;
        let _ = flat.f_mul_scalar_(1.0 - learning_rate * weight_decay)?.f_add_(&update)?;
        let _ = gradient.f_zero_()?;
        Ok(())
    }

    /// Forgets the gradient added up so far.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn discard(&mut self) -> Result<(), LmError> {
        for sum in &mut self.sums {
            let _ = sum.f_zero_()?;
        }
        Ok(())
    }

    /// The state to save: named tensors, and the number of steps taken.
    #[must_use]
    pub fn state(&self) -> (Vec<(String, Tensor)>, u64) {
        (
            vec![("mean".to_owned(), self.mean.shallow_clone()), ("square".to_owned(), self.square.shallow_clone())],
            self.steps,
        )
    }

    /// Takes up a state that [`Self::state`] gave.
    ///
    /// # Errors
    /// [`LmError::MissingTensor`] or [`LmError::Mismatch`] if it is not one of this optimiser's.
    pub fn restore(&mut self, tensors: &std::collections::BTreeMap<String, Tensor>, steps: u64) -> Result<(), LmError> {
        for (name, own) in [("mean", &mut self.mean), ("square", &mut self.square)] {
            let saved = tensors.get(name).ok_or_else(|| LmError::MissingTensor(name.to_owned()))?;
            if saved.numel() != own.numel() {
                return Err(LmError::Mismatch(format!(
                    "optimiser state {name} has {} numbers, not {}",
                    saved.numel(),
                    own.numel()
                )));
            }
            own.f_copy_(&saved.f_to_kind(Kind::Float)?)?;
        }
        self.steps = steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn parameters() -> Parameters {
        let weights = BTreeMap::from([("w".to_owned(), Tensor::from_slice(&[1.0f32, -2.0]))]);
        Parameters::new(&weights, Kind::Float, Device::Cpu).unwrap().trainable()
    }

    fn values(parameters: &Parameters) -> Vec<f32> {
        Vec::try_from(parameters.flat()).unwrap()
    }

    fn step(optimizer: &mut AdamW, parameters: &mut Parameters) -> Step {
        let loss = parameters.get("w").unwrap().square().sum(Kind::Float);
        optimizer.accumulate(parameters, &loss).unwrap();
        optimizer.step(parameters, 0.1).unwrap()
    }

    /// The first step of Adam is the learning rate times the sign of the gradient, whatever its size.
    #[test]
    fn the_first_step_is_as_long_as_the_learning_rate() {
        let mut parameters = parameters();
        let mut optimizer =
            AdamW::new(AdamWConfig { max_gradient_norm: 0.0, ..AdamWConfig::default() }, &parameters).unwrap();
        let step = step(&mut optimizer, &mut parameters);
        assert!((step.gradient_norm - 20.0f64.sqrt()).abs() < 1e-6);
        for (value, expected) in values(&parameters).into_iter().zip([0.9, -1.9]) {
            assert!((value - expected).abs() < 1e-5, "{value} is not {expected}");
        }
    }

    #[test]
    fn the_kernel_takes_the_steps_of_tensor_operations() {
        let count = 1000;
        let weights = BTreeMap::from([("w".to_owned(), Tensor::ones([count], (Kind::Float, Device::Cpu)))]);
        let parameters = || Parameters::new(&weights, Kind::Float, Device::Cpu).unwrap().trainable();
        let (mut one, other) = (parameters(), parameters());
        let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
        let mut kernel = AdamW::new(config.clone(), &one).unwrap();
        let mut operations = AdamW::new(config, &other).unwrap();
        for step in 1..=3 {
            let gradient = Tensor::arange(count, (Kind::Float, Device::Cpu)).sin() * f64::from(step);
            kernel.sum(0).unwrap().copy_(&gradient);
            operations.sum(0).unwrap().copy_(&gradient);
            let norm = kernel.step(&mut one, 0.01).unwrap().gradient_norm;
            operations.steps += 1;
            operations.step_part(other.flat(), (0, count), norm, 0.01).unwrap();
            for (name, one, other) in [
                ("weights", one.flat(), other.flat()),
                ("means", &kernel.mean, &operations.mean),
                ("squares", &kernel.square, &operations.square),
                ("gradient", &kernel.sums[0], &operations.sums[0]),
            ] {
                let apart = (one - other).abs().max().double_value(&[]);
                assert!(apart < 1e-6, "{name} of step {step}: {apart}");
            }
        }
    }

    #[test]
    fn every_part_of_many_weights_takes_its_step() {
        let count = 2 * PART_NUMBERS as i64 + 3;
        let weights = BTreeMap::from([("w".to_owned(), Tensor::ones([count], (Kind::Float, Device::Cpu)))]);
        let mut parameters = Parameters::new(&weights, Kind::Float, Device::Cpu).unwrap().trainable();
        let mut optimizer = AdamW::new(AdamWConfig::default(), &parameters).unwrap();
        for expected in [0.9, 0.8] {
            step(&mut optimizer, &mut parameters);
            let apart = (parameters.flat() - expected).abs().max().double_value(&[]);
            assert!(apart < 1e-2, "{apart} from {expected}");
        }
    }

    #[test]
    fn a_step_is_that_of_all_sums_together_and_leaves_them_empty() {
        let (mut one, mut other) = (parameters(), parameters());
        let mut whole = AdamW::new(AdamWConfig::default(), &one).unwrap();
        let mut parts = AdamW::new(AdamWConfig::default(), &other).unwrap();
        for gradient in [[3.0f32, -1.0], [0.5, 8.0]] {
            let gradient = Tensor::from_slice(&gradient);
            whole.sum(0).unwrap().copy_(&gradient);
            for (thread, share) in [(0, 0.25), (1, 0.5), (2, 0.25)] {
                parts.sum(thread).unwrap().copy_(&(&gradient * share));
            }
            assert_eq!(whole.step(&mut one, 0.1).unwrap(), parts.step(&mut other, 0.1).unwrap());
            assert_eq!(values(&one), values(&other));
        }
        let _ = parts.sum(1).unwrap().fill_(1.0);
        parts.discard().unwrap();
        assert_eq!(parts.step(&mut other, 0.1).unwrap().gradient_norm, 0.0);
    }

    #[test]
    fn a_restored_optimizer_takes_the_same_steps() {
        let (mut first, mut second) = (parameters(), parameters());
        let mut one = AdamW::new(AdamWConfig::default(), &first).unwrap();
        let mut two = AdamW::new(AdamWConfig::default(), &second).unwrap();
        step(&mut one, &mut first);
        second.copy_from(&first).unwrap();
        let (tensors, steps) = one.state();
        two.restore(&tensors.into_iter().collect(), steps).unwrap();
        step(&mut one, &mut first);
        step(&mut two, &mut second);
        assert_eq!(values(&first), values(&second));
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let mut parameters = parameters();
        let mut optimizer = AdamW::new(AdamWConfig::default(), &parameters).unwrap();
        let loss = parameters.get("w").unwrap().sum(Kind::Float) * f64::INFINITY;
        optimizer.accumulate(&parameters, &loss).unwrap();
        assert!(!optimizer.step(&mut parameters, 0.1).unwrap().taken);
        assert_eq!(values(&parameters), [1.0, -2.0]);
        assert!(step(&mut optimizer, &mut parameters).taken, "the bad gradient is gone");
    }
}
