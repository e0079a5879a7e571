// What a decoding step does on a CPU, apart from memory and threads. kernels.cpp is compiled once for each instruction
// set; shim.cpp picks the widest that this CPU has, and cuts the work into ranges [begin, end) for its threads.
//
// Every number is computed in an order that depends on neither the range nor what else is in the batch.
#pragma once

#include <cstdint>

namespace saddle {

// out = input · weightᵀ + bias: `depth` wide rows in, `outputs` wide rows out. The weight is packed: panels of
// `Kernels::panel` outputs, each with the outputs of one input side by side. Of bf16, a word of two inputs takes the place of
// one input, in weights and in `input`; an odd depth ends with a half of zero.
struct Product {
  const void *weight;
  const float *bias;  // [panels · panel], or null
  float *out;
  int64_t outputs;
};

// Tokens of many sequences, each with its place in a cache [rows, capacity, kv_heads, head_size] of keys and values.
struct Attention {
  const float *query;  // [tokens, heads · head_size]
  const float *key;    // [tokens, kv_heads · head_size]
  const float *value;
  float *keys;
  float *values;
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

struct Kernels {
  int64_t panel;
  // Panels of a product; `depth` in numbers, or in words.
  void (*linear_f32)(const Product &, const void *input, int64_t rows, int64_t depth, int64_t begin, int64_t end);
  void (*linear_bf16)(const Product &, const void *input, int64_t rows, int64_t depth, int64_t begin, int64_t end);
  // Rows of `width` numbers rounded to bf16, as words.
  void (*pair)(const float *input, int64_t width, uint32_t *out, int64_t begin, int64_t end);
  // Tokens whose keys and values go into the cache.
  void (*store)(const Attention &, int64_t begin, int64_t end);
  // (token, key-value head) pairs; `scratch` has room for a row of the cache and two heads.
  void (*attend)(const Attention &, float *scratch, int64_t begin, int64_t end);
  // Rows of x · weight / rms(x).
  void (*rms_norm)(const float *input, const float *weight, double epsilon, int64_t width, float *out, int64_t begin,
                   int64_t end);
  // Elements of silu(gate) · up.
  void (*swiglu)(const float *gate, const float *up, float *out, int64_t begin, int64_t end);
  // Rows of logits: the token where the cumulative softmax(logits / temperature) passes the row's uniform number, and its
  // log-probability; at temperature 0 the first of the likeliest, at temperature 1. `masses` has room for a row.
  void (*choose)(const float *logits, int64_t width, double temperature, const double *uniforms, double *masses,
                 int64_t *tokens, float *log_probs, int64_t begin, int64_t end);
  // Elements of a step; the gradient is zero then.
  void (*adamw)(const Step &, float *weights, float *gradient, float *means, float *squares, int64_t begin, int64_t end);
};

extern const Kernels kernels_baseline;
#ifdef __x86_64__
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512bf16;
#endif

}  // namespace saddle
