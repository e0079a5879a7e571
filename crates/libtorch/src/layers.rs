//! Layers on a CPU in one pass each, forward and backward, where libtorch makes several: they record gradients as its own
//! operations do. Tensors are float32 on the CPU. Every number is computed in an order that depends on neither threads nor,
//! but for the gradient of a norm's weight, what else is in the batch.

use crate::{LibtorchError, ffi};
use tch::Tensor;

/// x · weight / √(mean(x²) + ε) of the last dimension of `input` `[.., width]`, with `weight` `[width]` (RMSNorm, arXiv
/// 1910.07467).
///
/// # Errors
/// [`LibtorchError::Exception`] if shapes, kinds or devices do not fit.
pub fn rms_norm(input: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor, LibtorchError> {
    ffi::rms_norm(input, weight, epsilon)
}

/// silu(`gate`) · `up`, element by element, of two tensors of one shape (SwiGLU, arXiv 2002.05202).
///
/// # Errors
/// [`LibtorchError::Exception`] if shapes, kinds or devices do not fit.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor, LibtorchError> {
    ffi::swiglu(gate, up)
}

/// Sequences one after another among packed tokens, and how a token sees those before it in its own.
#[derive(Debug)]
pub struct Packing<'a> {
    /// The first token of each sequence, and the number of tokens behind the last: int64, on the CPU.
    pub starts: &'a Tensor,
    /// Cosine and sine of the rotary positions, `[positions, head_size]` each with halves repeated, where there are any.
    pub rotary: Option<(&'a Tensor, &'a Tensor)>,
    /// How many tokens a token sees, itself included, where that is limited.
    pub window: Option<i64>,
    /// Numbers in a head.
    pub head_size: i64,
}

/// What each token takes from those of its sequence up to itself: softmax(q kᵀ / √head_size) v, `[tokens, heads · head_size]`
/// of `query` so wide and `key` and `value` `[tokens, kv_heads · head_size]`, each of whose heads as many query heads share.
/// Queries and keys are turned here (RoPE, arXiv 2104.09864).
///
/// # Errors
/// [`LibtorchError::Exception`] if shapes, kinds or devices do not fit, or a sequence is longer than the rotary tables.
pub fn sequence_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    packing: &Packing<'_>,
) -> Result<Tensor, LibtorchError> {
    let Packing { starts, rotary, window, head_size } = *packing;
    ffi::sequence_attention((query, key, value), starts, rotary, head_size, window.unwrap_or(0))
}

/// Of each row of `logits` `[rows, vocabulary]` the log-probability of its token of `targets` under softmax(logits /
/// `temperature`), and the entropy of that softmax in nats, which carries no gradient: `[rows]` each.
///
/// # Errors
/// [`LibtorchError::Exception`] if shapes, kinds or devices do not fit, a target is outside the vocabulary, or the temperature
/// is not above zero.
pub fn log_probs(logits: &Tensor, targets: &Tensor, temperature: f64) -> Result<(Tensor, Tensor), LibtorchError> {
    ffi::log_probs(logits, targets, temperature)
}
