//! Linear layers, norms and feed-forwards.

use crate::lora::Adapter;
use crate::{Architecture, DecoderConfig, LmError, Parameters, Precision};
use saddle_libtorch::kernels::PackedWeight;
use saddle_libtorch::{decoder, layers};
use tch::{Device, Kind, Tensor, no_grad_guard};

/// x Wᵀ + b, and what an adapter adds.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    /// Whether the weight is stored as Wᵀ, with the input first (GPT-2's `Conv1D`).
    input_first: bool,
    /// What the product is computed in.
    pub(super) precision: Precision,
    adapter: Option<Adapter>,
}

impl Linear {
    /// `name.weight` `[outputs, inputs]` without a bias.
    pub(super) fn plain(name: &str, parameters: &Parameters) -> Result<Self, LmError> {
        let (weight, adapter) = (parameters.get(&format!("{name}.weight"))?, parameters.adapter(name));
        Ok(Self { weight, bias: None, input_first: false, precision: Precision::F32, adapter })
    }

    /// `name.weight` `[outputs, inputs]` and `name.bias` `[outputs]`.
    pub(super) fn biased(name: &str, parameters: &Parameters) -> Result<Self, LmError> {
        Ok(Self { bias: Some(parameters.in_float(&format!("{name}.bias"))?), ..Self::plain(name, parameters)? })
    }

    /// GPT-2's: `name.weight` `[inputs, outputs]` and `name.bias` `[outputs]`.
    pub(super) fn input_first(name: &str, parameters: &Parameters) -> Result<Self, LmError> {
        Ok(Self { input_first: true, ..Self::biased(name, parameters)? })
    }

    /// The same layer for decoding on a CPU, with its adapter merged.
    pub(super) fn pack(&self, storage: Kind) -> Result<PackedWeight, LmError> {
        let [whole] = self.pack_parts(storage)?;
        Ok(whole)
    }

    /// The same layer with its outputs in `N` equal parts.
    pub(super) fn pack_parts<const N: usize>(&self, storage: Kind) -> Result<[PackedWeight; N], LmError> {
        let _guard = no_grad_guard();
        let mut matrix = self.matrix()?;
        if let Some(adapter) = &self.adapter {
            matrix = matrix.f_add(&adapter.product()?)?;
        }
        let width = matrix.size()[0] / N as i64;
        let parts = (0..N as i64).map(|part| {
            let bias = self.bias.as_ref().map(|bias| bias.f_narrow(0, part * width, width)).transpose()?;
            Ok(PackedWeight::new(&matrix.f_narrow(0, part * width, width)?, bias.as_ref(), storage)?)
        });
        let parts = parts.collect::<Result<Vec<_>, LmError>>()?;
        Ok(parts.try_into().expect("there is one for each number below N"))
    }

    /// `[.., inputs]` to `[.., outputs]`.
    pub(super) fn apply(&self, input: &Tensor) -> Result<Tensor, LmError> {
        let [output] = Self::apply_each([self], input)?;
        Ok(output)
    }

    /// What each of `layers`, which are of one precision, makes of `input`.
    pub(super) fn apply_each<const N: usize>(layers: [&Self; N], input: &Tensor) -> Result<[Tensor; N], LmError> {
        let weights = layers.iter().map(|layer| layer.matrix()).collect::<Result<Vec<_>, _>>()?;
        let products = layers[0].precision.products(input, &weights.iter().collect::<Vec<_>>())?;
        let outputs = layers.iter().zip(products).map(|(layer, product)| {
            let output = match &layer.bias {
                Some(bias) => product.f_add(bias)?,
                None => product,
            };
            match &layer.adapter {
                Some(adapter) => adapter.add_to(&output, input),
                None => Ok(output),
            }
        });
        let outputs = outputs.collect::<Result<Vec<_>, _>>()?;
        Ok(outputs.try_into().expect("there is one for each layer"))
    }

    /// `[outputs, inputs]`, without what an adapter adds.
    fn matrix(&self) -> Result<Tensor, LmError> {
        Ok(if self.input_first { self.weight.f_transpose(0, 1)? } else { self.weight.shallow_clone() })
    }
}

/// An RMS norm, or a layer norm where there is a bias.
#[derive(Debug)]
pub(super) struct Norm {
    weight: Tensor,
    bias: Option<Tensor>,
    epsilon: f64,
}

impl Norm {
    pub(super) fn over(name: &str, config: &DecoderConfig, parameters: &Parameters) -> Result<Self, LmError> {
        let centred = config.architecture == Architecture::Gpt2;
        Ok(Self {
            weight: parameters.in_float(&format!("{name}.weight"))?,
            bias: centred.then(|| parameters.in_float(&format!("{name}.bias"))).transpose()?,
            epsilon: config.rms_norm_eps,
        })
    }

    /// As the decoder for CPUs takes it.
    pub(super) fn view(&self) -> decoder::Norm<'_> {
        decoder::Norm { weight: &self.weight, bias: self.bias.as_ref(), epsilon: self.epsilon }
    }

    /// Norms the last dimension.
    pub(super) fn apply(&self, input: &Tensor) -> Result<Tensor, LmError> {
        let shape = self.weight.size();
        Ok(match &self.bias {
            None if input.device() == Device::Cpu => layers::rms_norm(input, &self.weight, self.epsilon)?,
            None => input.f_rms_norm(shape, Some(&self.weight), self.epsilon)?,
            Some(bias) => input.f_layer_norm(shape, Some(&self.weight), Some(bias), self.epsilon, false)?,
        })
    }
}

/// What stands between the attentions of two blocks.
#[derive(Debug)]
pub(super) enum FeedForward {
    /// down(silu(gate(x)) · up(x)) (SwiGLU, arXiv 2002.05202).
    Gated { gate: Linear, up: Linear, down: Linear },
    /// down(gelu(up(x))), with GELU's tanh approximation (arXiv 1606.08415).
    Plain { up: Linear, down: Linear },
}

impl FeedForward {
    pub(super) fn over(prefix: &str, config: &DecoderConfig, parameters: &Parameters) -> Result<Self, LmError> {
        if config.architecture == Architecture::Gpt2 {
            return Ok(Self::Plain {
                up: Linear::input_first(&format!("{prefix}.mlp.c_fc"), parameters)?,
                down: Linear::input_first(&format!("{prefix}.mlp.c_proj"), parameters)?,
            });
        }
        let named = |name: &str| Linear::plain(&format!("{prefix}.mlp.{name}"), parameters);
        Ok(Self::Gated { gate: named("gate_proj")?, up: named("up_proj")?, down: named("down_proj")? })
    }

    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Gated { gate, up, down } => vec![gate, up, down],
            Self::Plain { up, down } => vec![up, down],
        }
    }

    pub(super) fn apply(&self, input: &Tensor) -> Result<Tensor, LmError> {
        match self {
            Self::Gated { gate, up, down } => {
                let [gate, up] = Linear::apply_each([gate, up], input)?;
                down.apply(&match input.device() {
                    Device::Cpu => layers::swiglu(&gate, &up)?,
                    _ => gate.f_silu()?.f_mul(&up)?,
                })
            }
            Self::Plain { up, down } => down.apply(&up.apply(input)?.f_gelu("tanh")?),
        }
    }
}
