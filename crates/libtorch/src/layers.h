// Layers on a CPU in one pass each, forward and backward, where libtorch makes several: they record gradients as its own
// operations do. Tensors are float32 on the CPU. Every number is computed in an order that depends on neither threads nor,
// but for a norm's weight gradient, what else is in the batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace saddle {

using Table = std::optional<at::Tensor>;

// x · weight / √(mean(x²) + ε) of the last dimension, with weight [width].
at::Tensor rms_norm(const at::Tensor &input, const at::Tensor &weight, double epsilon);

// silu(gate) · up.
at::Tensor swiglu(const at::Tensor &gate, const at::Tensor &up);

// What each token takes from those of its own sequence up to itself, at most `window` of them unless that is 0:
// softmax(q kᵀ / √head_size) v. Query [tokens, heads · head_size], key and value [tokens, kv_heads · head_size]; `starts`
// [sequences + 1] has the first token of each sequence, and the number of tokens. Queries and keys are turned by their
// positions' rows of `cosine` and `sine`, [positions, head_size] with halves repeated, if there are any.
at::Tensor sequence_attention(const at::Tensor &query, const at::Tensor &key, const at::Tensor &value,
                              const at::Tensor &starts, const Table &cosine, const Table &sine, int64_t head_size,
                              int64_t window);

// Of each row of logits [rows, width] the log-probability of its target under softmax(logits / temperature), and the
// entropy of that softmax, which has no gradient: [rows] each.
std::vector<at::Tensor> log_probs(const at::Tensor &logits, const at::Tensor &targets, double temperature);

}  // namespace saddle
