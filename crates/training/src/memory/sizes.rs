//! How many numbers a decoder has and what is computed with it keeps, from its shape alone.

use saddle_lm::{Architecture, DecoderConfig, LmError, LoraConfig, policy_shapes, score_shapes};

fn count(shapes: &[(String, Vec<i64>)]) -> usize {
    shapes.iter().map(|(_, shape)| shape.iter().product::<i64>() as usize).sum()
}

/// Weights of a policy.
pub(super) fn policy_weights(shape: &DecoderConfig) -> usize {
    count(&policy_shapes(shape))
}

/// Weights of a score model with `heads` scores.
pub(super) fn score_weights(shape: &DecoderConfig, heads: usize) -> usize {
    count(&score_shapes(shape, heads))
}

/// Numbers in the largest matrix of a model.
pub(super) fn largest_matrix(shape: &DecoderConfig) -> usize {
    policy_shapes(shape).iter().map(|each| count(std::slice::from_ref(each))).max().unwrap_or(0)
}

/// Adapters of a model.
pub(super) fn adapters(lora: &LoraConfig, shape: &DecoderConfig) -> Result<usize, LmError> {
    lora.parameter_count(shape)
}

/// Heads of a score model with `heads` scores.
pub(super) fn score_heads(shape: &DecoderConfig, heads: usize) -> usize {
    heads.saturating_mul(shape.hidden_size)
}

/// Keys and values of `rows` sequences of up to `capacity` tokens.
pub(super) fn key_value_cache(shape: &DecoderConfig, rows: usize, capacity: usize) -> usize {
    let token = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim();
    token.saturating_mul(rows).saturating_mul(capacity)
}

/// What the trunk keeps of `tokens` tokens in rows of `length` for its backward pass: in each block the input, the scaled and
/// the weighted form of two norms, what attention keeps, and the inner states of the feed-forward.
pub(super) fn activations(shape: &DecoderConfig, tokens: usize, length: usize, on_cpu: bool) -> usize {
    let (heads, key_value_heads) = (shape.num_attention_heads, shape.num_key_value_heads);
    let attention = if on_cpu && heads != key_value_heads {
        // libtorch has no fused attention for grouped queries there: keys and values are repeated, and the weights kept.
        4 * heads * shape.head_dim() + heads * length
    } else {
        2 * (heads + key_value_heads) * shape.head_dim()
    };
    let inner = if shape.architecture == Architecture::Gpt2 { 2 } else { 4 } * shape.intermediate_size;
    let block = 6 * shape.hidden_size + attention + inner;
    tokens.saturating_mul(shape.num_hidden_layers).saturating_mul(block)
}

/// What one block has in hand while `tokens` tokens pass without a backward pass to come.
pub(super) fn passing(shape: &DecoderConfig, tokens: usize) -> usize {
    tokens.saturating_mul(4 * shape.hidden_size + 3 * shape.intermediate_size)
}

/// Logits of `positions` response positions, `copies` times: a softmax keeps its input and its output, and what is
/// computed on the way from one to the other is there for a moment.
pub(super) fn logits(shape: &DecoderConfig, positions: usize, copies: usize) -> usize {
    positions.saturating_mul(shape.vocab_size).saturating_mul(copies)
}
