// The contract is in layers.h, what is computed in kernels.h.

#include "layers.h"

#include <ATen/ATen.h>
#include <omp.h>
#include <torch/csrc/autograd/custom_function.h>

#include "dispatch.h"

namespace saddle {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Rows whose shares of a weight's gradient are added up by one thread, in order.
constexpr int64_t NORM_ROWS = 128;

void require_floats(const at::Tensor &tensor, const char *what) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.is_cpu(), what, " must be float32 on the CPU, is ",
              tensor.scalar_type(), " on ", tensor.device());
}

struct RmsNorm : Function<RmsNorm> {
  static at::Tensor forward(AutogradContext *context, const at::Tensor &input, const at::Tensor &weight, double epsilon) {
    const at::Tensor from = input.contiguous(), scale = weight.contiguous(), out = at::empty_like(from);
    const int64_t width = weight.numel();
    share_out(from.numel() / width, 4 * width, [&](int64_t begin, int64_t end) {
      kernels().training.rms_norm(from.const_data_ptr<float>(), scale.const_data_ptr<float>(), epsilon, width,
                                  out.data_ptr<float>(), begin, end);
    });
    context->save_for_backward({from, scale});
    context->saved_data["epsilon"] = epsilon;
    return out;
  }

  static variable_list backward(AutogradContext *context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &input = saved[0], &weight = saved[1];
    const at::Tensor slopes = gradients[0].contiguous(), input_slopes = at::empty_like(input);
    const int64_t width = weight.numel(), rows = input.numel() / width, parts = (rows + NORM_ROWS - 1) / NORM_ROWS;
    const at::Tensor weight_slopes = at::empty({parts, width}, weight.options());
    const double epsilon = context->saved_data["epsilon"].toDouble();
    share_out(parts, 8 * width * NORM_ROWS, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; part++) {
        kernels().training.rms_norm_backward(
            input.const_data_ptr<float>(), weight.const_data_ptr<float>(), epsilon, width, slopes.const_data_ptr<float>(),
            input_slopes.data_ptr<float>(), weight_slopes.data_ptr<float>() + part * width, part * NORM_ROWS,
            std::min((part + 1) * NORM_ROWS, rows));
      }
    });
    return {input_slopes, weight_slopes.sum(0), at::Tensor()};
  }
};

struct Swiglu : Function<Swiglu> {
  static at::Tensor forward(AutogradContext *context, const at::Tensor &gate, const at::Tensor &up) {
    const at::Tensor x = gate.contiguous(), y = up.contiguous(), out = at::empty_like(x);
    share_out(x.numel(), 32, [&](int64_t begin, int64_t end) {
      kernels().training.swiglu(x.const_data_ptr<float>(), y.const_data_ptr<float>(), out.data_ptr<float>(), begin, end);
    });
    context->save_for_backward({x, y});
    return out;
  }

  static variable_list backward(AutogradContext *context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor slopes = gradients[0].contiguous();
    const at::Tensor gate = at::empty_like(saved[0]), up = at::empty_like(saved[1]);
    share_out(gate.numel(), 48, [&](int64_t begin, int64_t end) {
      kernels().training.swiglu_backward(saved[0].const_data_ptr<float>(), saved[1].const_data_ptr<float>(),
                                         slopes.const_data_ptr<float>(), gate.data_ptr<float>(), up.data_ptr<float>(),
                                         begin, end);
    });
    return {gate, up};
  }
};

struct SequenceAttention : Function<SequenceAttention> {
  static at::Tensor forward(AutogradContext *context, const at::Tensor &query, const at::Tensor &key,
                            const at::Tensor &value, const at::Tensor &starts, const Table &cosines, const Table &sines,
                            int64_t head_size, int64_t window) {
    const at::Tensor cosine = cosines.value_or(at::Tensor()), sine = sines.value_or(at::Tensor());
    const at::Tensor q = query.contiguous(), k = key.contiguous(), v = value.contiguous(), out = at::empty_like(q);
    const at::Tensor masses = at::empty({q.size(0), q.size(1) / head_size}, q.options());
    const Sequences sequences = over(q, k, v, starts, cosine, sine, head_size, window);
    const Attended to{out.data_ptr<float>(), masses.data_ptr<float>()};
    each_pair(sequences, starts, [&](int64_t pair, float *scratch) { kernels().training.attend(sequences, pair, scratch, to); });
    context->save_for_backward({q, k, v, starts, cosine, sine, out, masses});
    context->saved_data["head_size"] = head_size;
    context->saved_data["window"] = window;
    return out;
  }

  static variable_list backward(AutogradContext *context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &starts = saved[3], &out = saved[6], &masses = saved[7];
    const Sequences sequences = over(q, k, v, starts, saved[4], saved[5], context->saved_data["head_size"].toInt(),
                                     context->saved_data["window"].toInt());
    const at::Tensor slopes = gradients[0].contiguous();
    const at::Tensor query = at::empty_like(q), key = at::empty_like(k), value = at::empty_like(v);
    const Attended from{out.data_ptr<float>(), masses.data_ptr<float>()};
    const SequenceGradients to{slopes.const_data_ptr<float>(), query.data_ptr<float>(), key.data_ptr<float>(),
                               value.data_ptr<float>()};
    each_pair(sequences, starts, [&](int64_t pair, float *scratch) {
      kernels().training.attend_backward(sequences, pair, scratch, from, to);
    });
    return {query, key, value, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }

  static Sequences over(const at::Tensor &query, const at::Tensor &key, const at::Tensor &value, const at::Tensor &starts,
                        const at::Tensor &cosine, const at::Tensor &sine, int64_t head_size, int64_t window) {
    const auto table = [](const at::Tensor &tensor) { return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr; };
    return {query.const_data_ptr<float>(),   key.const_data_ptr<float>(), value.const_data_ptr<float>(),
            starts.const_data_ptr<int64_t>(), table(cosine),               table(sine),
            query.size(1) / head_size,       key.size(1) / head_size,     head_size,
            window};
  }

  // Calls body(pair, scratch) for every (sequence, key-value head) pair. Threads take the next pair when they are done with
  // one: a long sequence costs many times what a short one does.
  template <typename Body>
  static void each_pair(const Sequences &sequences, const at::Tensor &starts, Body body) {
    const int64_t rows = starts.numel() - 1, pairs = rows * sequences.kv_heads;
    int64_t longest = 0, multiplications = 0;
    for (int64_t row = 0; row < rows; row++) {
      const int64_t length = sequences.starts[row + 1] - sequences.starts[row];
      longest = std::max(longest, length);
      multiplications += length * length * sequences.heads * sequences.head_size;
    }
    const int64_t worth = multiplications / GRAIN + 1;
    const int threads = static_cast<int>(std::min<int64_t>({at::get_num_threads(), pairs, worth}));
    const int64_t room = kernels().training.sequences_scratch(longest, sequences.head_size);
    std::vector<float> scratch(room * threads);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t pair = 0; pair < pairs; pair++) body(pair, scratch.data() + room * omp_get_thread_num());
  }
};

struct LogProbs : Function<LogProbs> {
  static variable_list forward(AutogradContext *context, const at::Tensor &logits, const at::Tensor &targets, double scale) {
    const at::Tensor from = logits.contiguous(), chosen = targets.contiguous();
    const int64_t width = from.size(1);
    const at::Tensor log_probs = at::empty({from.size(0)}, from.options());
    const at::Tensor entropies = at::empty_like(log_probs), masses = at::empty_like(log_probs);
    share_out(from.size(0), 32 * width, [&](int64_t begin, int64_t end) {
      kernels().training.log_probs(from.const_data_ptr<float>(), width, static_cast<float>(scale),
                                   chosen.const_data_ptr<int64_t>(), log_probs.data_ptr<float>(),
                                   entropies.data_ptr<float>(), masses.data_ptr<float>(), begin, end);
    });
    context->save_for_backward({from, chosen, masses});
    context->saved_data["scale"] = scale;
    context->mark_non_differentiable({entropies});
    return {log_probs, entropies};
  }

  static variable_list backward(AutogradContext *context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &logits = saved[0], slopes = gradients[0].contiguous(), out = at::empty_like(logits);
    const int64_t width = logits.size(1);
    const float scale = static_cast<float>(context->saved_data["scale"].toDouble());
    share_out(logits.size(0), 24 * width, [&](int64_t begin, int64_t end) {
      kernels().training.log_probs_backward(logits.const_data_ptr<float>(), width, scale,
                                            saved[1].const_data_ptr<int64_t>(), saved[2].const_data_ptr<float>(),
                                            slopes.const_data_ptr<float>(), out.data_ptr<float>(), begin, end);
    });
    return {out, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor &input, const at::Tensor &weight, double epsilon) {
  require_floats(input, "a norm's input");
  require_floats(weight, "a norm's weight");
  TORCH_CHECK(weight.dim() == 1 && weight.numel() > 0 && input.dim() > 0 && input.size(-1) == weight.numel(),
              "a norm of ", weight.sizes(), " has an input of ", input.sizes());
  return RmsNorm::apply(input, weight, epsilon);
}

at::Tensor swiglu(const at::Tensor &gate, const at::Tensor &up) {
  require_floats(gate, "a gate");
  require_floats(up, "what is gated");
  TORCH_CHECK(gate.sizes() == up.sizes(), "a gate of ", gate.sizes(), " before ", up.sizes());
  return Swiglu::apply(gate, up);
}

at::Tensor sequence_attention(const at::Tensor &query, const at::Tensor &key, const at::Tensor &value,
                              const at::Tensor &starts, const Table &cosine, const Table &sine, int64_t head_size,
                              int64_t window) {
  for (const at::Tensor *each : {&query, &key, &value}) {
    require_floats(*each, "query, key or value");
    TORCH_CHECK(each->dim() == 2 && each->size(0) == query.size(0), "query, key and value are of ", query.sizes(), ", ",
                key.sizes(), " and ", value.sizes());
  }
  TORCH_CHECK(head_size > 0 && key.size(1) > 0 && key.size(1) % head_size == 0 && query.size(1) % key.size(1) == 0 &&
                  value.size(1) == key.size(1) && window >= 0,
              "heads of ", head_size, " in queries of ", query.size(1), ", keys of ", key.size(1), " and values of ",
              value.size(1), ", window ", window);
  TORCH_CHECK(starts.is_cpu() && starts.scalar_type() == at::kLong && starts.dim() == 1 && starts.is_contiguous() &&
                  starts.numel() > 0,
              "starts of sequences must be int64 on the CPU");
  const int64_t *first = starts.const_data_ptr<int64_t>(), rows = starts.numel() - 1;
  TORCH_CHECK(first[0] == 0 && first[rows] == query.size(0), "sequences from ", first[0], " to ", first[rows], " of ",
              query.size(0), " tokens");
  int64_t longest = 0;
  for (int64_t row = 0; row < rows; row++) {
    TORCH_CHECK(first[row] <= first[row + 1], "a sequence ends before it starts");
    longest = std::max(longest, first[row + 1] - first[row]);
  }
  for (const Table *table : {&cosine, &sine}) {
    TORCH_CHECK(table->has_value() == cosine.has_value(), "cosines without sines, or sines without cosines");
    if (!table->has_value()) continue;
    const at::Tensor &numbers = **table;
    require_floats(numbers, "a rotary table");
    TORCH_CHECK(numbers.dim() == 2 && numbers.is_contiguous() && numbers.size(0) >= longest &&
                    numbers.size(1) == head_size && head_size % 2 == 0,
                "a sequence of ", longest, " tokens and heads of ", head_size, " with rotary tables of ", numbers.sizes());
  }
  return SequenceAttention::apply(query, key, value, starts, cosine, sine, head_size, window);
}

std::vector<at::Tensor> log_probs(const at::Tensor &logits, const at::Tensor &targets, double temperature) {
  require_floats(logits, "logits");
  TORCH_CHECK(logits.dim() == 2 && targets.dim() == 1 && targets.size(0) == logits.size(0) && targets.is_cpu() &&
                  targets.scalar_type() == at::kLong && temperature > 0.0,
              "logits of ", logits.sizes(), " for targets of ", targets.sizes(), " at temperature ", temperature);
  if (targets.numel() > 0) {
    TORCH_CHECK(targets.min().item<int64_t>() >= 0 && targets.max().item<int64_t>() < logits.size(1),
                "a target outside the vocabulary of ", logits.size(1));
  }
  return LogProbs::apply(logits, targets, 1.0 / temperature);
}

}  // namespace saddle
