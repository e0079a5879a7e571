//! Products of an input with weights, on every device, and where the gradients of weights are added up.

use crate::{LibtorchError, ffi};
use tch::Tensor;

/// What input, weights and gradients are turned into before they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factors {
    /// float32; a weight that is kept as bfloat16 is widened for the moment of the product.
    Whole = 0,
    /// Rounded to bfloat16, and multiplied as float32.
    Rounded = 1,
    /// bfloat16.
    Narrow = 2,
}

/// input · weightᵀ for each of `weights`: `[.., outputs]` in float32, from `input` `[.., inputs]` in float32 and weights
/// `[outputs, inputs]` in float32, or in bfloat16 where they are not trained. They record gradients as one operation: what
/// becomes of the input is computed and kept once, and its gradient is summed in float32. A backward pass keeps weights as
/// they are, those multiplied as bfloat16 excepted.
///
/// # Errors
/// [`LibtorchError::Exception`] for operands of other kinds, a weight in bfloat16 with gradients, or shapes that do not fit.
pub fn products(input: &Tensor, weights: &[&Tensor], factors: Factors) -> Result<Vec<Tensor>, LibtorchError> {
    ffi::products(input, weights, factors as i32)
}

/// Adds d`loss` / d leaf of each of `leaves` to its tensor of `sums`, of the same shape, as soon as a backward pass has it:
/// the gradients of a model are never there all at once. Other threads may use other leaves meanwhile.
///
/// # Errors
/// [`LibtorchError::Exception`] if libtorch fails, for instance because `loss` depends on no leaf.
///
/// # Panics
/// If there are not as many sums as leaves.
pub fn add_gradients(loss: &Tensor, leaves: &[Tensor], sums: &[Tensor]) -> Result<(), LibtorchError> {
    assert_eq!(leaves.len(), sums.len(), "each leaf needs a sum");
    ffi::add_gradients(loss, leaves, sums)
}
