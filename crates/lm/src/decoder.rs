//! A decoder: a trunk with a head, over one set of [`Parameters`]. [`Policy`](crate::Policy) and
//! [`ScoreModel`](crate::ScoreModel) are decoders that differ in their head.

use crate::lora::{fresh_adapters, merge};
use crate::{DecoderConfig, LmError, LoraConfig, Parameters, Precision, Trunk};
use std::collections::BTreeMap;
use std::fmt::Debug;
use tch::{Device, Kind, Tensor};

/// What stands on the trunk of a decoder.
pub trait DecoderHead: Debug + Sized {
    /// The head's weight, if it is trained whole beside adapters.
    const TRAINED_WHOLE: Option<&'static str>;

    /// The head's own view of `parameters`; a tied one shares the embedding of `trunk`.
    ///
    /// # Errors
    /// [`LmError::MissingTensor`] if its weight is missing.
    fn over(config: &DecoderConfig, parameters: &Parameters, trunk: &Trunk) -> Result<Self, LmError>;
}

/// A trunk with the head `H`, over one set of [`Parameters`].
#[derive(Debug)]
pub struct Decoder<H> {
    config: DecoderConfig,
    parameters: Parameters,
    trunk: Trunk,
    head: H,
    precision: Precision,
}

impl<H: DecoderHead> Decoder<H> {
    /// A decoder over `parameters`, named as [`policy_shapes`](crate::policy_shapes) or
    /// [`score_shapes`](crate::score_shapes) says.
    ///
    /// # Errors
    /// [`LmError::MissingTensor`] if one is missing.
    pub fn over(config: DecoderConfig, parameters: Parameters) -> Result<Self, LmError> {
        let trunk = Trunk::over(&config, &parameters)?;
        let head = H::over(&config, &parameters, &trunk)?;
        Ok(Self { config, parameters, trunk, head, precision: Precision::F32 })
    }

    /// A decoder with `weights`, as float32 on `device`, frozen.
    ///
    /// # Errors
    /// As [`Self::over`].
    pub fn from_weights(
        config: DecoderConfig,
        weights: &BTreeMap<String, Tensor>,
        device: Device,
    ) -> Result<Self, LmError> {
        Self::over(config, Parameters::new(weights, Kind::Float, device)?)
    }

    /// This model with its frozen weights kept as `kind` on `device`, frozen; what is so already is shared. Adapters, and what
    /// is trained beside them, are float32 in any case.
    ///
    /// # Errors
    /// As [`Self::over`].
    pub fn kept(&self, kind: Kind, device: Device) -> Result<Self, LmError> {
        let parameters = self.parameters.kept(kind, device)?;
        Ok(Self::over(self.config.clone(), parameters)?.in_precision(self.precision))
    }

    /// The same decoder, with the matrix products of trunk and language-model head computed in `precision`. Its weights, and
    /// what else it computes, stay as they are.
    #[must_use]
    pub fn in_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self.trunk.set_precision(precision);
        self
    }

    /// This model with fresh low-rank adapters, frozen. Its own weights are shared, not copied, and stay as they are;
    /// [`Self::parameters`] of the adapted one are the adapters and, of a score model, a copy of its head.
    ///
    /// # Errors
    /// [`LmError::Mismatch`] if the model lacks a target, the rank is too large for it, or it has adapters already.
    pub fn adapted(&self, lora: &LoraConfig, seed: u64) -> Result<Self, LmError> {
        let whole = H::TRAINED_WHOLE.map(|name| Ok::<_, LmError>((name.to_owned(), self.parameters.get(name)?)));
        self.adapted_with(lora, seed, whole.transpose()?)
    }

    /// As [`Self::adapted`], with a head of the caller's.
    pub(crate) fn adapted_with(
        &self,
        lora: &LoraConfig,
        seed: u64,
        head: Option<(String, Tensor)>,
    ) -> Result<Self, LmError> {
        let mut weights = fresh_adapters(&self.config, lora, seed)?;
        weights.extend(head);
        Self::over(self.config.clone(), Parameters::on(&self.parameters, lora, &weights)?)
    }

    /// Every weight by its published name, with adapters merged into the projections beside which they stand. What is not
    /// merged shares memory with this, unless it lies beneath adapters and is kept as bfloat16: what adapters add would be
    /// lost in its rounding, so all of it is given as float32, on the CPU.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn weights(&self) -> Result<BTreeMap<String, Tensor>, LmError> {
        let (Some(base), Some(lora)) = (self.parameters.base(), self.parameters.lora()) else {
            return Ok(self.parameters.to_map());
        };
        let (mut weights, mut trained) = (base.to_map(), self.parameters.to_map());
        if base.flat().f_kind()? != Kind::Float {
            for weight in weights.values_mut().chain(trained.values_mut()) {
                *weight = weight.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
            }
        }
        merge(&self.config, &mut weights, &trained, lora.scale())?;
        Ok(weights)
    }

    /// The same decoder with gradients recorded.
    ///
    /// # Errors
    /// As [`Self::over`].
    pub fn trainable(self) -> Result<Self, LmError> {
        Ok(Self::over(self.config, self.parameters.trainable())?.in_precision(self.precision))
    }

    /// A twin over the same weights, which follows their updates; its operations record their gradients apart, so that
    /// another thread can use it.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn replica(&self) -> Result<Self, LmError> {
        Ok(Self::over(self.config.clone(), self.parameters.replica()?)?.in_precision(self.precision))
    }

    /// A frozen copy that later updates do not touch.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn snapshot(&self) -> Result<Self, LmError> {
        Ok(Self::over(self.config.clone(), self.parameters.snapshot()?)?.in_precision(self.precision))
    }

    /// The architecture.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// What matrix products are computed in.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The weights; of an adapted model, what is trained of them.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The same, for an optimiser to change.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// The device that the weights are on.
    #[must_use]
    pub fn device(&self) -> Device {
        self.parameters.flat().device()
    }

    /// The trunk alone.
    #[must_use]
    pub fn trunk(&self) -> &Trunk {
        &self.trunk
    }

    pub(crate) fn head(&self) -> &H {
        &self.head
    }
}
