// A decoder's forward pass over packed weights, on a CPU.
#pragma once

#include "kernels.h"

namespace saddle {

// A linear layer, packed as `Product` says; without a weight there is none.
struct Matrix {
  const void *weight;
  const float *bias;
  int64_t outputs;
};

// An RMS norm, or a layer norm where there is a bias; without a weight there is none.
struct Norm {
  const float *weight;
  const float *bias;
  double epsilon;
};

// One layer: x += output(attention(norm(x))), then x += down(silu(gate(norm(x))) · up(norm(x))), or down(gelu(up(norm(x))))
// where there is no gate.
struct Block {
  Norm attention_norm;
  Matrix query;
  Matrix key;
  Matrix value;
  Norm query_norm;  // of each head
  Norm key_norm;
  Matrix output;
  Norm feed_forward_norm;
  Matrix gate;
  Matrix up;
  Matrix down;
  void *keys;  // [rows, kv_heads, capacity, head_size]
  void *values;
};

struct Decoder {
  const Block *blocks;  // at least one
  int64_t count;
  Norm norm;
  const float *cosine;  // [positions, head_size], or null: queries and keys are not turned
  const float *sine;
  int64_t width;
  int64_t inner;  // outputs of `up`
  int64_t heads;
  int64_t kv_heads;
  int64_t head_size;
  int64_t capacity;
  int64_t window;     // how many tokens a token sees, itself included; 0: all before it
  bool bf16_weights;  // else float32
  bool bf16_cache;
};

// What goes through it. The tokens of one row are all stored before any of them is attended to.
struct Tokens {
  float *hidden;  // [count, width]: what enters the first layer; overwritten
  const int64_t *rows;
  const int64_t *positions;
  int64_t count;
  int64_t longest;        // no position is as large
  const int64_t *wanted;  // the tokens whose hidden states are given, or null: all
  int64_t wanted_count;
  float *out;  // [wanted_count, width], after the last norm
};

void forward(const Decoder &decoder, const Tokens &tokens);

// The products of `input` [rows, depth] with each of `products`, whose weights are bf16 or float32.
void linear(const Product *products, int64_t count, const float *input, int64_t rows, int64_t depth, bool bf16);

}  // namespace saddle
