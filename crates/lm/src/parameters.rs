//! A model's weights: one flat buffer, and a named view of it for each tensor.
//!
//! One buffer makes everything that treats all weights alike one operation: a snapshot is one copy, an optimiser step a
//! handful of element-wise operations, a gradient norm one reduction. The names are those of the published checkpoint.
//!
//! The buffer holds what is trained. It may lie on a **base**: other parameters, frozen, whose memory any number of models
//! share, and which may be kept as bfloat16. A name that is not in the buffer is looked up there. A model with low-rank adapters is held in this way (see
//! [`LoraConfig`]): its own buffer, and with it its gradient, its optimiser's state and its snapshots, has the adapters only.

use crate::lora::{Adapter, DOWN, UP};
use crate::{LmError, LoraConfig};
use saddle_libtorch::products::add_gradients;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor, no_grad_guard};

/// Named weights that live side by side in one buffer.
#[derive(Debug)]
pub struct Parameters {
    flat: Tensor,
    names: Vec<String>,
    views: Vec<Tensor>,
    base: Option<Base>,
}

/// What lies beneath adapters.
#[derive(Debug)]
struct Base {
    parameters: Box<Parameters>,
    lora: LoraConfig,
}

impl Base {
    fn shared(&self) -> Result<Self, LmError> {
        Ok(Self { parameters: Box::new(self.parameters.shared()?), lora: self.lora.clone() })
    }
}

impl Parameters {
    /// Copies `weights` into one new buffer on `device` as `kind`. The parameters are frozen until [`Self::trainable`].
    ///
    /// # Errors
    /// Fails if libtorch does, for instance out of memory.
    pub fn new(weights: &BTreeMap<String, Tensor>, kind: Kind, device: Device) -> Result<Self, LmError> {
        let _guard = no_grad_guard();
        let count = weights.values().map(Tensor::numel).sum::<usize>();
        let flat = Tensor::f_empty([count as i64], (kind, device))?;
        let mut offset = 0;
        for weight in weights.values() {
            let length = weight.numel() as i64;
            flat.f_narrow(0, offset, length)?.f_copy_(&weight.f_reshape([-1])?)?;
            offset += length;
        }
        Self::over(flat, weights.keys().cloned().collect(), weights.values().map(Tensor::size))
    }

    /// `weights`, the adapters of `lora` among them, as float32 on the memory of `base`, which stays frozen.
    ///
    /// # Errors
    /// [`LmError::Mismatch`] if `base` lies on another base itself; else if libtorch fails.
    pub(crate) fn on(base: &Self, lora: &LoraConfig, weights: &BTreeMap<String, Tensor>) -> Result<Self, LmError> {
        if base.base.is_some() {
            return Err(LmError::Mismatch("the model has adapters already; merge them into it first".into()));
        }
        let own = Self::new(weights, Kind::Float, base.flat.device())?;
        Ok(Self { base: Some(Base { parameters: Box::new(base.shared()?), lora: lora.clone() }), ..own })
    }

    fn over(flat: Tensor, names: Vec<String>, shapes: impl Iterator<Item = Vec<i64>>) -> Result<Self, LmError> {
        let mut offset = 0;
        let mut views = Vec::with_capacity(names.len());
        for shape in shapes {
            let length = shape.iter().product();
            views.push(flat.f_narrow(0, offset, length)?.f_view(shape.as_slice())?.f_detach()?);
            offset += length;
        }
        Ok(Self { flat, names, views, base: None })
    }

    /// The same weights, with gradients recorded for operations on them from now on.
    #[must_use]
    pub fn trainable(self) -> Self {
        let views = self.views.iter().map(|view| view.set_requires_grad(true)).collect();
        Self { views, ..self }
    }

    /// A frozen copy with a buffer of its own: later updates of `self` do not show in it. A base, which has no updates, is
    /// shared.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn snapshot(&self) -> Result<Self, LmError> {
        let _guard = no_grad_guard();
        self.with(self.flat.f_detach_copy()?)
    }

    /// The same weights, frozen, kept as `kind` on `device`: what is so already is shared, the rest copied. What lies on a
    /// base is float32 in any case.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn kept(&self, kind: Kind, device: Device) -> Result<Self, LmError> {
        let _guard = no_grad_guard();
        let base = match &self.base {
            Some(base) => {
                Some(Base { parameters: Box::new(base.parameters.kept(kind, device)?), lora: base.lora.clone() })
            }
            None => None,
        };
        let kind = if base.is_some() { Kind::Float } else { kind };
        let flat = self.flat.f_to_device(device)?.f_to_kind(kind)?;
        Ok(Self { base, ..Self::over(flat, self.names.clone(), self.views.iter().map(Tensor::size))? })
    }

    /// The same buffer under views of their own, which record gradients apart from those of `self`.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn replica(&self) -> Result<Self, LmError> {
        Ok(self.shared()?.trainable())
    }

    /// The same buffer under frozen views of its own.
    fn shared(&self) -> Result<Self, LmError> {
        self.with(self.flat.shallow_clone())
    }

    /// `flat` under the names and shapes of `self`, on the same base.
    fn with(&self, flat: Tensor) -> Result<Self, LmError> {
        let base = self.base.as_ref().map(Base::shared).transpose()?;
        Ok(Self { base, ..Self::over(flat, self.names.clone(), self.views.iter().map(Tensor::size))? })
    }

    /// Takes over the values of `other`, which must have the same names and shapes.
    ///
    /// # Errors
    /// [`LmError::Mismatch`] if it has not.
    pub fn copy_from(&mut self, other: &Self) -> Result<(), LmError> {
        if self.names != other.names || self.flat.numel() != other.flat.numel() {
            return Err(LmError::Mismatch("the two sets of weights have different names or sizes".into()));
        }
        let _guard = no_grad_guard();
        self.flat.f_copy_(&other.flat)?;
        Ok(())
    }

    /// The tensor called `name`, or that of the base.
    ///
    /// # Errors
    /// [`LmError::MissingTensor`] if there is none.
    pub fn get(&self, name: &str) -> Result<Tensor, LmError> {
        match (self.own(name), &self.base) {
            (Some(tensor), _) => Ok(tensor),
            (None, Some(base)) => base.parameters.get(name),
            (None, None) => Err(LmError::MissingTensor(name.to_owned())),
        }
    }

    /// As [`Self::get`], in float32: for norms, biases and small heads, which nothing is saved by keeping narrower.
    pub(crate) fn in_float(&self, name: &str) -> Result<Tensor, LmError> {
        Ok(self.get(name)?.f_to_kind(Kind::Float)?)
    }

    fn own(&self, name: &str) -> Option<Tensor> {
        let index = self.names.binary_search_by(|each| each.as_str().cmp(name));
        index.ok().map(|index| self.views[index].shallow_clone())
    }

    /// The adapter of the projection `name`, if it has one.
    pub(crate) fn adapter(&self, name: &str) -> Option<Adapter> {
        let scale = self.lora()?.scale();
        Some(Adapter { down: self.own(&format!("{name}{DOWN}"))?, up: self.own(&format!("{name}{UP}"))?, scale })
    }

    /// What adapters these parameters hold, if they do.
    #[must_use]
    pub fn lora(&self) -> Option<&LoraConfig> {
        self.base.as_ref().map(|base| &base.lora)
    }

    /// The frozen parameters beneath, if there are any.
    #[must_use]
    pub fn base(&self) -> Option<&Self> {
        self.base.as_ref().map(|base| &*base.parameters)
    }

    /// Every name with its tensor, in the order of the names; those of the base are not among them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.names.iter().map(String::as_str).zip(&self.views)
    }

    /// Every tensor by its name, sharing memory with this; those of the base are not among them.
    #[must_use]
    pub fn to_map(&self) -> BTreeMap<String, Tensor> {
        self.iter().map(|(name, tensor)| (name.to_owned(), tensor.detach())).collect()
    }

    /// The whole buffer, `[count]`.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// How many numbers there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.flat.numel()
    }

    /// Adds d`loss` / d(parameters) to `sum`, flat as [`Self::gradient`] gives it.
    ///
    /// # Errors
    /// As [`Self::gradient`].
    pub fn add_gradient(&self, loss: &Tensor, sum: &Tensor) -> Result<(), LmError> {
        let mut offset = 0;
        let sums = self.views.iter().map(|view| {
            let length = view.numel() as i64;
            let part = sum.f_narrow(0, offset, length)?.f_view_as(view);
            offset += length;
            part
        });
        Ok(add_gradients(loss, &self.views, &sums.collect::<Result<Vec<_>, _>>()?)?)
    }

    /// d`loss` / d(parameters) as one flat tensor `[count]`; zero where the loss does not depend on a parameter.
    ///
    /// # Errors
    /// Fails if libtorch does, for instance when `loss` depends on no parameter at all.
    pub fn gradient(&self, loss: &Tensor) -> Result<Tensor, LmError> {
        let sum = self.flat.f_zeros_like()?;
        self.add_gradient(loss, &sum)?;
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Parameters {
        let weights = BTreeMap::from([
            ("a".to_owned(), Tensor::from_slice(&[1.0f32, 2.0]).reshape([1, 2])),
            ("b".to_owned(), Tensor::from_slice(&[3.0f32])),
        ]);
        Parameters::new(&weights, Kind::Float, Device::Cpu).unwrap()
    }

    #[test]
    fn the_gradient_is_flat_and_zero_where_a_parameter_is_unused() {
        let parameters = two().trainable();
        let loss = (parameters.get("a").unwrap() * 2.0).sum(Kind::Float);
        assert_eq!(Vec::<f32>::try_from(parameters.gradient(&loss).unwrap()).unwrap(), [2.0, 2.0, 0.0]);
    }

    #[test]
    fn a_snapshot_does_not_follow_later_updates() {
        let mut parameters = two();
        let snapshot = parameters.snapshot().unwrap();
        let _ = parameters.flat.fill_(9.0);
        assert_eq!(parameters.get("b").unwrap().double_value(&[0]), 9.0);
        assert_eq!(snapshot.get("b").unwrap().double_value(&[0]), 3.0);
        parameters.copy_from(&snapshot).unwrap();
        assert_eq!(parameters.get("b").unwrap().double_value(&[0]), 3.0);
    }

    #[test]
    fn a_replica_follows_updates_and_has_gradients_of_its_own() {
        let parameters = two().trainable();
        let replica = parameters.replica().unwrap();
        let _ = no_grad_guard();
        let _ = parameters.flat.shallow_clone().fill_(3.0);
        let loss = replica.get("a").unwrap().square().sum(Kind::Float);
        assert_eq!(Vec::<f32>::try_from(replica.gradient(&loss).unwrap()).unwrap(), [6.0, 6.0, 0.0]);
        let other = Vec::<f32>::try_from(parameters.gradient(&loss).unwrap()).unwrap();
        assert_eq!(other, [0.0; 3], "the loss knows nothing of the other's views");
    }

    #[test]
    fn an_unknown_name_is_an_error_that_names_it() {
        assert!(two().get("c").unwrap_err().to_string().contains("c"));
    }
}
