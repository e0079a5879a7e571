// What decoding and training do on a CPU, apart from memory and threads. decoding.cpp and training.cpp are compiled once
// for each instruction set; dispatch.h picks the widest that this CPU has, and cuts the work into ranges [begin, end) for
// its threads.
//
// Every number is computed in an order that depends on neither the range nor what else is in the batch.
#pragma once

#include <cstdint>

namespace saddle {

// out = input · weightᵀ + bias: `depth` wide rows in, `outputs` wide rows out. The weight is packed: panels of
// `Kernels::panel` outputs, each with the outputs of one input side by side. Of bf16, a word of two inputs takes the place of
// one input in weights, and what `pair` makes of two inputs in `input`; an odd depth ends with a half of zero.
struct Product {
  const void *weight;
  const float *bias;  // [panels · panel], or null
  float *out;
  int64_t outputs;
};

// Tokens of many sequences, each with its place in a cache [rows, kv_heads, capacity, head_size] of keys and values, in float32
// or bf16.
struct Attention {
  const float *query;  // [tokens, heads · head_size]
  const float *key;    // [tokens, kv_heads · head_size]
  const float *value;
  void *keys;
  void *values;
  const int64_t *rows;       // [tokens]
  const int64_t *positions;  // [tokens]
  const float *cosine;       // [positions, head_size], or null: queries and keys are not turned
  const float *sine;
  float *out;  // [tokens, heads · head_size]
  int64_t heads;
  int64_t kv_heads;
  int64_t head_size;
  int64_t capacity;
  int64_t window;  // how many tokens a token sees, itself included; 0: all before it
};

// Whole sequences one after another, each a run of tokens that see themselves and those before them in it.
struct Sequences {
  const float *query;  // [tokens, heads · head_size]
  const float *key;    // [tokens, kv_heads · head_size]
  const float *value;
  const int64_t *starts;  // the first token of each sequence, and one past the last of all
  const float *cosine;    // [positions, head_size], or null: queries and keys are not turned
  const float *sine;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_size;
  int64_t window;  // how many tokens a token sees, itself included; 0: all before it
};

// What a forward pass over sequences gives, and what a backward pass needs of it.
struct Attended {
  float *out;     // [tokens, heads · head_size]
  float *masses;  // [tokens, heads]: log Σ e^score
};

// Gradients of a backward pass over sequences.
struct SequenceGradients {
  const float *out;  // [tokens, heads · head_size]
  float *query;
  float *key;
  float *value;
};

// A step of AdamW.
struct Step {
  float scale;  // of the gradient
  float beta1;
  float beta2;
  float mean_correction;    // 1 − beta1^steps
  float square_correction;  // 1 − beta2^steps
  float epsilon;
  float rate;
  float decay;  // what is left of a weight
};

// What reads weights or a cache that are kept in one format.
struct Kept {
  // Panels of a product; `depth` in numbers, or in words.
  void (*linear)(const Product &, const void *input, int64_t rows, int64_t depth, int64_t begin, int64_t end);
  // Tokens whose keys and values go into the cache.
  void (*store)(const Attention &, int64_t begin, int64_t end);
  // (token, key-value head) pairs; `scratch` has room for `attention_scratch` of the longest row.
  void (*attend)(const Attention &, float *scratch, int64_t begin, int64_t end);
};

struct Decoding {
  int64_t panel;
  int64_t pair_bytes;
  Kept f32;
  Kept bf16;
  // Rows of `width` numbers rounded to bf16, two by two in `pair_bytes`.
  void (*pair)(const float *input, int64_t width, void *out, int64_t begin, int64_t end);
  int64_t (*attention_scratch)(int64_t longest, int64_t head_size);
  // Rows of (x − mean(x)) / deviation(x) · weight + bias.
  void (*layer_norm)(const float *input, const float *weight, const float *bias, double epsilon, int64_t width, float *out,
                     int64_t begin, int64_t end);
  // Elements become gelu(x), in its form with a tangent.
  void (*gelu)(float *numbers, int64_t begin, int64_t end);
  // Elements of `more` are added to those of `sums`.
  void (*add)(const float *more, float *sums, int64_t begin, int64_t end);
  // Rows of logits: the token where the cumulative softmax(logits / temperature) passes the row's uniform number, and its
  // log-probability; at temperature 0 the first of the likeliest, at temperature 1. `masses` has room for a row.
  void (*choose)(const float *logits, int64_t width, double temperature, const double *uniforms, double *masses,
                 int64_t *tokens, float *log_probs, int64_t begin, int64_t end);
};

struct Training {
  // Rows of x · weight / rms(x).
  void (*rms_norm)(const float *input, const float *weight, double epsilon, int64_t width, float *out, int64_t begin,
                   int64_t end);
  // Their gradients; that of the weight, [width], is the sum over these rows alone.
  void (*rms_norm_backward)(const float *input, const float *weight, double epsilon, int64_t width, const float *out_gradient,
                            float *input_gradient, float *weight_gradient, int64_t begin, int64_t end);
  // Elements of silu(gate) · up, and their gradients.
  void (*swiglu)(const float *gate, const float *up, float *out, int64_t begin, int64_t end);
  void (*swiglu_backward)(const float *gate, const float *up, const float *out_gradient, float *gate_gradient,
                          float *up_gradient, int64_t begin, int64_t end);
  // How many numbers a thread writes down for sequences of up to `longest` tokens, forward and backward.
  int64_t (*sequences_scratch)(int64_t longest, int64_t head_size);
  // A (sequence, key-value head) pair.
  void (*attend)(const Sequences &, int64_t pair, float *scratch, const Attended &);
  void (*attend_backward)(const Sequences &, int64_t pair, float *scratch, const Attended &, const SequenceGradients &);
  // Rows of logits · scale: the log-probability of each row's target under their softmax, the softmax's entropy, and
  // log Σ e^logit; then the gradient of the logits, from that of the log-probability.
  void (*log_probs)(const float *logits, int64_t width, float scale, const int64_t *targets, float *log_probs, float *entropies,
                    float *masses, int64_t begin, int64_t end);
  void (*log_probs_backward)(const float *logits, int64_t width, float scale, const int64_t *targets, const float *masses,
                             const float *log_prob_gradients, float *logit_gradients, int64_t begin, int64_t end);
  // Elements of a step; the gradient is zero then.
  void (*adamw)(const Step &, float *weights, float *gradient, float *means, float *squares, int64_t begin, int64_t end);
};

extern const Decoding decoding_baseline;
extern const Training training_baseline;
#ifdef __x86_64__
extern const Decoding decoding_avx2, decoding_avx512, decoding_avx512bf16;
extern const Training training_avx2, training_avx512, training_avx512bf16;
#endif

}  // namespace saddle
