//! Kernels of decoding on a CPU, which libtorch has no fast form of: products of few rows with packed weights and the choice of
//! tokens; and the optimiser's step. Tensors are contiguous, on the CPU and, where nothing else is said, float32; nothing
//! records gradients.
//!
//! A thin product takes as long as reading its weights. Here they are read once, in order, in the layout that registers
//! want; stored as bfloat16 they are half as long, and so are the inputs, which are rounded too: products of a processor's
//! units for bfloat16, or of the widened numbers where it has none, summed in float32. Every number is summed in an order
//! that does not depend on what else is computed beside it: a row's result is the same, to the bit, in any batch.

use crate::{LibtorchError, ffi};
use std::ffi::c_void;
use std::ptr;
use tch::{Device, Kind, Tensor};

/// A linear layer's weight in the layout of the kernels.
#[derive(Debug)]
pub struct PackedWeight {
    /// `[panels, inputs, panel]`; of bfloat16, pairs of inputs side by side: `[panels, ⌈inputs / 2⌉, panel, 2]`.
    panels: Tensor,
    /// `[panels · panel]`.
    bias: Option<Tensor>,
    pub(crate) inputs: i64,
    pub(crate) outputs: i64,
}

impl PackedWeight {
    /// Packs `weight` `[outputs, inputs]` with its `bias` `[outputs]`; numbers are kept as `storage`, float32 or bfloat16.
    ///
    /// # Errors
    /// [`LibtorchError::Operand`] if `storage` is another kind or `weight` is no matrix; else if libtorch fails.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, storage: Kind) -> Result<Self, LibtorchError> {
        let _guard = tch::no_grad_guard();
        let [outputs, inputs] = weight.size()[..] else {
            return Err(operand(format!("a weight has the shape {:?}, not [outputs, inputs]", weight.size())));
        };
        let width = ffi::panel();
        let panels = (outputs + width - 1) / width;
        let padding = panels * width - outputs;
        let group = match storage {
            Kind::Float => 1,
            Kind::BFloat16 => 2,
            other => return Err(operand(format!("weights are packed as Float or BFloat16, not {other:?}"))),
        };
        let depth = (inputs + group - 1) / group;
        let weight = weight.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(storage)?;
        let fits = padding == 0 && depth * group == inputs;
        let padded = if fits { weight } else { weight.f_constant_pad_nd([0, depth * group - inputs, 0, padding])? };
        let panels = padded.f_view([panels, width, depth, group])?.f_transpose(1, 2)?.f_contiguous()?;
        let bias = bias
            .map(|bias| {
                let bias = bias.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
                bias.f_constant_pad_nd([0, padding])?.f_contiguous()
            })
            .transpose()?;
        Ok(Self { panels, bias, inputs, outputs })
    }

    /// What its numbers are kept as.
    pub(crate) fn kind(&self) -> Kind {
        self.panels.kind()
    }

    /// The panels, and the bias or null.
    pub(crate) fn pointers(&self) -> (*const c_void, *const f32) {
        let bias = self.bias.as_ref().map_or(ptr::null(), |bias| bias.data_ptr().cast::<f32>().cast_const());
        (self.panels.data_ptr(), bias)
    }
}

/// input · weightᵀ + bias for each of `weights`, which are all of one kind: `[rows, outputs]` from `input` `[rows, inputs]`,
/// which is rounded to that kind.
///
/// # Errors
/// [`LibtorchError::Operand`] if shapes or kinds do not fit.
pub fn linear(weights: &[&PackedWeight], input: &Tensor) -> Result<Vec<Tensor>, LibtorchError> {
    let _guard = tch::no_grad_guard();
    let Some(first) = weights.first() else { return Ok(Vec::new()) };
    let (depth, kind) = (first.inputs, first.kind());
    let rows = input.size().first().copied().unwrap_or(0);
    require(input, &[rows, depth])?;
    if weights.iter().any(|weight| weight.inputs != depth || weight.kind() != kind) {
        return Err(operand("weights of one product differ in inputs or kind".to_owned()));
    }
    let outputs = weights
        .iter()
        .map(|weight| Tensor::f_empty([rows, weight.outputs], (Kind::Float, Device::Cpu)))
        .collect::<Result<Vec<_>, _>>()?;
    let products: Vec<_> = weights
        .iter()
        .zip(&outputs)
        .map(|(packed, out)| {
            let (weight, bias) = packed.pointers();
            ffi::Product { weight, bias, out: out.data_ptr().cast(), outputs: packed.outputs }
        })
        .collect();
    ffi::linear(&products, input.data_ptr().cast(), rows, depth, kind == Kind::BFloat16)?;
    Ok(outputs)
}

/// For each row of `logits` `[rows, vocabulary]` the token at which the cumulative softmax(logits / `temperature`) passes the
/// row's number of `uniforms`, in [0, 1), and the token's log-probability; at temperature 0 the first of the likeliest, with
/// its log-probability at temperature 1. A token whose probability is below e⁻⁸⁷ of the likeliest's is never drawn.
///
/// # Errors
/// [`LibtorchError::Operand`] if shapes or kinds do not fit, or the temperature is below zero.
pub fn choose(logits: &Tensor, temperature: f64, uniforms: &[f64]) -> Result<(Vec<i64>, Vec<f32>), LibtorchError> {
    let width = logits.size().last().copied().unwrap_or(0);
    require(logits, &[uniforms.len() as i64, width])?;
    if width == 0 || temperature.is_nan() || temperature < 0.0 {
        return Err(operand(format!("a choice of {width} tokens at temperature {temperature}")));
    }
    ffi::choose(logits.data_ptr().cast(), width, temperature, uniforms)
}

/// A step of AdamW (arXiv 1711.05101).
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    /// What the gradient is multiplied with first.
    pub scale: f64,
    /// Decays of the means of gradients and of their squares.
    pub betas: (f64, f64),
    /// Steps taken, this one included.
    pub steps: u64,
    /// Added to the root of the mean square.
    pub epsilon: f64,
    /// Learning rate.
    pub rate: f64,
    /// Weights shrink by this times the rate.
    pub weight_decay: f64,
}

/// Changes `weights`, and the means `means` and `squares` of gradients and of their squares, by `gradient`, which is zero
/// then. All four are `[count]`, and none shares memory with another.
///
/// # Errors
/// [`LibtorchError::Operand`] if shapes or kinds do not fit.
pub fn adamw(
    step: &AdamWStep,
    weights: &mut Tensor,
    gradient: &mut Tensor,
    (means, squares): (&mut Tensor, &mut Tensor),
) -> Result<(), LibtorchError> {
    let tensors = [weights, gradient, means, squares];
    let count = tensors[0].numel() as i64;
    tensors.iter().try_for_each(|tensor| require(tensor, &[count]))?;
    let pointers = tensors.map(|tensor| tensor.data_ptr().cast::<f32>());
    if (1..4).any(|index| pointers[..index].contains(&pointers[index])) {
        return Err(operand("weights, gradient and means share memory".to_owned()));
    }
    let correction = |beta: f64| (1.0 - beta.powf(step.steps as f64)) as f32;
    let step = ffi::Step {
        scale: step.scale as f32,
        beta1: step.betas.0 as f32,
        beta2: step.betas.1 as f32,
        mean_correction: correction(step.betas.0),
        square_correction: correction(step.betas.1),
        epsilon: step.epsilon as f32,
        rate: step.rate as f32,
        decay: (1.0 - step.rate * step.weight_decay) as f32,
    };
    ffi::adamw(&step, pointers, count)
}

/// Refuses a tensor that the kernels cannot read as float32 of `shape`.
pub(crate) fn require(tensor: &Tensor, shape: &[i64]) -> Result<(), LibtorchError> {
    require_kind(tensor, shape, Kind::Float)
}

pub(crate) fn require_kind(tensor: &Tensor, shape: &[i64], kind: Kind) -> Result<(), LibtorchError> {
    let fits =
        tensor.size() == shape && tensor.kind() == kind && tensor.device() == Device::Cpu && tensor.is_contiguous();
    if fits {
        return Ok(());
    }
    Err(operand(format!(
        "{shape:?} of contiguous {kind:?} on the CPU is needed, not {:?} of {:?} on {:?}",
        tensor.size(),
        tensor.kind(),
        tensor.device()
    )))
}

pub(crate) fn operand(message: String) -> LibtorchError {
    LibtorchError::Operand { message }
}
