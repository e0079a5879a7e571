// What a decoding step does on a CPU, apart from memory and threads. kernels.cpp is compiled once for each instruction
// set; shim.cpp picks the widest that this CPU has, and cuts the work into ranges [begin, end) for its threads.
//
// Every number is computed in an order that depends on neither the range nor what else is in the batch.
#pragma once

#include <cstdint>

namespace saddle {

// out = input · weightᵀ + bias: `depth` wide rows in, `outputs` wide rows out. The weight is packed: panels of
// `Kernels::panel` outputs, each with the outputs of one input side by side (bf16: halves interleaved).
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

struct Kernels {
  int64_t panel;
  // Panels of a product.
  void (*linear_f32)(const Product &, const float *input, int64_t rows, int64_t depth, int64_t begin, int64_t end);
  void (*linear_bf16)(const Product &, const float *input, int64_t rows, int64_t depth, int64_t begin, int64_t end);
  // Tokens whose keys and values go into the cache.
  void (*store)(const Attention &, int64_t begin, int64_t end);
  // (token, key-value head) pairs; `scratch` has room for a row of the cache and two heads.
  void (*attend)(const Attention &, float *scratch, int64_t begin, int64_t end);
  // Rows of x · weight / rms(x).
  void (*rms_norm)(const float *input, const float *weight, double epsilon, int64_t width, float *out, int64_t begin,
                   int64_t end);
  // Elements of silu(gate) · up.
  void (*swiglu)(const float *gate, const float *up, float *out, int64_t begin, int64_t end);
};

extern const Kernels kernels_baseline;
#ifdef __x86_64__
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace saddle
