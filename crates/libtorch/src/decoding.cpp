// The decoding kernels of kernels.h for one instruction set.

#include "kernels.h"

#include "vectors.h"

namespace saddle {
namespace {

// So few rows are summed for two panels at a time: one alone would wait for its own additions.
constexpr int FEW_ROWS = 3;
// Rows whose sums are kept beside a panel, and depth of a part of the panel that stays in the first-level cache.
constexpr int BLOCK_ROWS = 16 * ROWS;
constexpr int64_t BLOCK_DEPTH = 256;
// Query heads of one key-value head that attend together, so that keys and values are read once for all of them.
constexpr int HEADS = SADDLE_LANES == 16 ? 4 : 3;
// Keys that they are multiplied with at a time.
constexpr int KEYS = 4;
// Logits whose probabilities are summed in float32, before the sums are added up in float64.
constexpr int64_t CHOICE_BLOCK = 1024;

// PANELS panels from `panel` on, for at most BLOCK_ROWS rows from `row` on, COUNT of them at a time.
template <int COUNT, int PANELS, typename Weight, typename Number>
INLINE void block(const Product &product, const Number *input, int64_t row, int64_t rows, int64_t depth, int64_t panel) {
  alignas(64) float aside[BLOCK_ROWS * PANEL];
  const int64_t column = panel * PANEL, left = product.outputs - column, next = depth * PANEL;
  const int64_t parts = (depth + BLOCK_DEPTH - 1) / BLOCK_DEPTH, tiles = (rows + COUNT - 1) / COUNT;
  const Weight *weights = static_cast<const Weight *>(product.weight);
  float *out = product.out + row * product.outputs + column;
  // What is not as wide as its panels is summed up aside.
  const bool fits = left >= PANELS * PANEL;
  const Sums sums = fits ? Sums{out, product.outputs, nullptr} : Sums{aside, PANELS * PANEL, nullptr};
  for (int64_t part = 0; part < parts; part++) {
    const int64_t begin = depth * part / parts, end = depth * (part + 1) / parts;
    const Weight *weight = weights + panel * next + begin * PANEL;
    const Weight *following = part + 1 < parts ? weights + panel * next + end * PANEL : weights + (panel + PANELS) * next;
    const float *bias = product.bias ? product.bias + column : NOTHING;
    const int64_t pace = PANEL * sizeof(Weight) / tiles;
    for (int64_t each = 0; each < tiles; each++) {
      const int64_t first = rows * each / tiles, last = rows * (each + 1) / tiles;
      const char *ahead = reinterpret_cast<const char *>(following) + each * (end - begin) * pace;
      tile_of<COUNT, PANELS>(last - first, Input<Number>{input + (row + first) * depth + begin, depth, 1}, weight, next,
                             end - begin, ahead, pace,
                             Sums{sums.numbers + first * sums.width, sums.width, part == 0 ? bias : nullptr});
    }
  }
  for (int64_t each = 0; !fits && each < rows; each++)
    for (int64_t place = 0; place < left; place++) out[each * product.outputs + place] = aside[each * PANELS * PANEL + place];
}

template <typename Weight, typename Number>
void linear(const Product &product, const void *input, int64_t rows, int64_t depth, int64_t begin, int64_t end) {
  const Number *from = static_cast<const Number *>(input);
  int64_t first = begin;
  for (; rows <= FEW_ROWS && first + 2 <= end; first += 2) block<FEW_ROWS, 2, Weight>(product, from, 0, rows, depth, first);
  // The rows of a block stay in the second-level cache while the panels pass by.
  for (int64_t row = 0; row < rows; row += BLOCK_ROWS)
    for (int64_t panel = first; panel < end; panel++)
      block<ROWS, 1, Weight>(product, from, row, rows - row < BLOCK_ROWS ? rows - row : BLOCK_ROWS, depth, panel);
}

// A pair lies in memory as its two numbers do: as bf16 for the units that multiply those, else as floats.
void pair(const float *input, int64_t width, void *out, int64_t begin, int64_t end) {
#ifdef __AVX512BF16__
  typedef uint16_t Half;
#else
  typedef uint32_t Half;
#endif
  constexpr int unused = 32 - 8 * sizeof(Half);
  const int64_t padded = width + width % 2;
  for (int64_t row = begin; row < end; row++) {
    const float *from = input + row * width;
    Half *to = static_cast<Half *>(out) + row * padded;
    for (int64_t place = 0; place < width; place++) to[place] = static_cast<Half>(rounded(from[place]) >> unused);
    if (padded > width) to[width] = 0;
  }
}

template <typename Number>
void store(const Attention &a, int64_t begin, int64_t end) {
  Number *keys = static_cast<Number *>(a.keys), *values = static_cast<Number *>(a.values);
  for (int64_t token = begin; token < end; token++) {
    const float *cosine = row_of(a.cosine, a.positions[token], a.head_size);
    const float *sine = row_of(a.sine, a.positions[token], a.head_size);
    for (int64_t head = 0; head < a.kv_heads; head++) {
      const int64_t from = (token * a.kv_heads + head) * a.head_size;
      const int64_t to = ((a.rows[token] * a.kv_heads + head) * a.capacity + a.positions[token]) * a.head_size;
      turn(a.key + from, a.head_size, cosine, sine, 1.0f, keys + to);
      for (int64_t i = 0; i < a.head_size; i++) keep(a.value[from + i], values + to + i);
    }
  }
}

// Where `crossed` has a number from: of every four, the vectors give one in turns, or (TWOS) two.
template <bool TWOS>
constexpr int source(int place) {
  const int low = place & 1, high = place >> 1 & 1;
  return (TWOS ? high : low) * LANES + (place & ~3) + (TWOS ? low : high);
}

// One vector of two: of every four numbers the halves are added, and what that leaves of both vectors lies side by side.
template <bool TWOS, int... PLACES>
INLINE lanes crossed(lanes one, lanes other, Places<PLACES...>) {
  return __builtin_shufflevector(one, other, source<TWOS>(PLACES)...) +
         __builtin_shufflevector(one, other, (source<TWOS>(PLACES) + 2)...);
}

// The totals of four vectors, in the first lanes.
INLINE lanes totals(lanes first, lanes second, lanes third, lanes fourth) {
  const Each each{};
  lanes all = crossed<true>(crossed<false>(first, second, each), crossed<false>(third, fourth, each), each);
  if constexpr (LANES > 4) all += swapped<4>(all, each);
  if constexpr (LANES > 8) all += swapped<8>(all, each);
  return all;
}

// scores[COUNT, stride]: the products of queries[COUNT, size] and keys[span, size]. The values, which are needed next, are asked for
// on the way.
template <int COUNT, typename Number>
INLINE void score(const float *queries, const Number *keys, const Number *values, int64_t span, int64_t size, float *scores,
                  int64_t stride) {
  for (int64_t t = 0; t < span; t += KEYS) {
    const Number *key[KEYS];
    // Behind the last key there may be nothing to read.
    for (int place = 0; place < KEYS; place++) key[place] = keys + (t + place < span ? t + place : span - 1) * size;
    const char *ahead = reinterpret_cast<const char *>(values + t * size);
    for (int64_t place = 0; place < KEYS * size * static_cast<int64_t>(sizeof(Number)); place += 64)
      __builtin_prefetch(ahead + place, 0, 3);
    lanes sums[COUNT][KEYS];
    for (int head = 0; head < COUNT; head++)
      for (int place = 0; place < KEYS; place++) sums[head][place] = lanes{};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES)
      for (int place = 0; place < KEYS; place++) {
        const lanes numbers = load(key[place] + i);
        for (int head = 0; head < COUNT; head++) sums[head][place] += load(queries + head * size + i) * numbers;
      }
    for (int head = 0; head < COUNT; head++) {
      lanes all = totals(sums[head][0], sums[head][1], sums[head][2], sums[head][3]);
      for (int64_t rest = i; rest < size; rest++)
        for (int place = 0; place < KEYS; place++) all[place] += queries[head * size + rest] * number(key[place][rest]);
      __builtin_memcpy(scores + head * stride + t, &all, KEYS * sizeof(float));
    }
  }
}

// Columns [i, i + WIDE · LANES) of `mix`.
template <int COUNT, int WIDE, typename Number>
INLINE void mix_columns(const float *weights, int64_t stride, const Number *values, int64_t span, int64_t size, int64_t i,
                        const float *scales, float *out) {
  lanes sums[COUNT][WIDE];
  for (int head = 0; head < COUNT; head++)
    for (int part = 0; part < WIDE; part++) sums[head][part] = lanes{};
  for (int64_t t = 0; t < span; t++)
    for (int part = 0; part < WIDE; part++) {
      const lanes numbers = load(values + t * size + i + part * LANES);
      for (int head = 0; head < COUNT; head++) sums[head][part] += weights[head * stride + t] * numbers;
    }
  for (int head = 0; head < COUNT; head++)
    for (int part = 0; part < WIDE; part++) save(out + head * size + i + part * LANES, sums[head][part] * scales[head]);
}

// out[COUNT, size]: Σ weights[t] · values[t] times a scale, for COUNT rows of weights.
template <int COUNT, typename Number>
INLINE void mix(const float *weights, int64_t stride, const Number *values, int64_t span, int64_t size, const float *scales,
                float *out) {
  int64_t i = 0;
  for (; i + 4 * LANES <= size; i += 4 * LANES) mix_columns<COUNT, 4>(weights, stride, values, span, size, i, scales, out);
  for (; i + LANES <= size; i += LANES) mix_columns<COUNT, 1>(weights, stride, values, span, size, i, scales, out);
  for (; i < size; i++)
    for (int head = 0; head < COUNT; head++) {
      float sum = 0.0f;
      for (int64_t t = 0; t < span; t++) sum += weights[head * stride + t] * number(values[t * size + i]);
      out[head * size + i] = sum * scales[head];
    }
}

int64_t stride_of(int64_t longest) { return longest + PANEL; }
int64_t attention_scratch(int64_t longest, int64_t head_size) { return HEADS * (head_size + stride_of(longest)); }

// What one token's heads attend to: keys and values [span, head_size] up to its position.
template <typename Number>
struct Span {
  int64_t token;
  int64_t position;
  int64_t length;
  const Number *keys;
  const Number *values;
};

// `count` heads from `head` on, at most COUNT.
template <int COUNT, typename Number>
INLINE void attend_heads(int64_t count, const Attention &a, const Span<Number> &seen, int64_t head, float *scratch) {
  if (count < COUNT) {
    if constexpr (COUNT > 1) attend_heads<COUNT - 1>(count, a, seen, head, scratch);
    return;
  }
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(a.head_size));
  const float *cosine = row_of(a.cosine, seen.position, a.head_size), *sine = row_of(a.sine, seen.position, a.head_size);
  const int64_t place = (seen.token * a.heads + head) * a.head_size, stride = stride_of(seen.length);
  float *queries = scratch, *scores = scratch + COUNT * a.head_size, scales[COUNT];
  for (int each = 0; each < COUNT; each++)
    turn(a.query + place + each * a.head_size, a.head_size, cosine, sine, scale, queries + each * a.head_size);
  score<COUNT>(queries, seen.keys, seen.values, seen.length, a.head_size, scores, stride);
  for (int each = 0; each < COUNT; each++) {
    float *here = scores + each * stride;
    scales[each] = 1.0f / exponentiate(here, seen.length, largest_score(here, seen.length));
  }
  mix<COUNT>(scores, stride, seen.values, seen.length, a.head_size, scales, a.out + place);
}

template <typename Number>
void attend(const Attention &a, float *scratch, int64_t begin, int64_t end) {
  const int64_t group = a.heads / a.kv_heads, parts = (group + HEADS - 1) / HEADS;
  for (int64_t pair = begin; pair < end; pair++) {
    const int64_t token = pair / a.kv_heads, shared = pair % a.kv_heads, last = a.positions[token];
    const int64_t first = a.window > 0 && last >= a.window ? last - a.window + 1 : 0;
    const int64_t entry = ((a.rows[token] * a.kv_heads + shared) * a.capacity + first) * a.head_size;
    const Span<Number> seen{token, last, last - first + 1, static_cast<const Number *>(a.keys) + entry,
                            static_cast<const Number *>(a.values) + entry};
    for (int64_t part = 0; part < parts; part++) {
      const int64_t head = group * part / parts, next = group * (part + 1) / parts;
      attend_heads<HEADS>(next - head, a, seen, shared * group + head, scratch);
    }
  }
}

void layer_norm(const float *input, const float *weight, const float *bias, double epsilon, int64_t width, float *out,
                int64_t begin, int64_t end) {
  const float count = static_cast<float>(width);
  for (int64_t row = begin; row < end; row++) {
    const float *from = input + row * width;
    float *to = out + row * width;
    const float mean = sum_of(from, width) / count;
    for (int64_t i = 0; i < width; i++) to[i] = from[i] - mean;
    const float factor = 1.0f / __builtin_sqrtf(dot(to, to, width) / count + static_cast<float>(epsilon));
    for (int64_t i = 0; i < width; i++) to[i] = to[i] * factor * weight[i] + bias[i];
  }
}

// x / 2 · (1 + tanh y) = x / (1 + e^(−2y)), with y = √(2/π) · (x + 0.044715 x³) (arXiv 1606.08415).
INLINE lanes gelu(lanes x) { return x / (exponential(x * (x * x * 0.044715f + 1.0f) * -1.5957691216057308f) + 1.0f); }

void gelu(float *numbers, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + LANES <= end; i += LANES) save(numbers + i, gelu(load(numbers + i)));
  for (; i < end; i++) numbers[i] = gelu(lanes{} + numbers[i])[0];
}

void add(const float *more, float *sums, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i++) sums[i] += more[i];
}

// Σ e^((logit − most) · scale).
INLINE double mass(const float *logits, int64_t count, float most, float scale) {
  lanes sum = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) sum += probability((load(logits + i) - most) * scale);
  float rest = total(sum);
  for (; i < count; i++) rest += probability(lanes{} + (logits[i] - most) * scale)[0];
  return rest;
}

// The first of logits[count] at which the masses up to it, `before` included, are above `bound`; else the last with any.
INLINE int64_t find(const float *logits, int64_t count, float most, float scale, double before, double bound) {
  int64_t last = 0;
  for (int64_t i = 0; i < count; i++) {
    const float power = probability(lanes{} + (logits[i] - most) * scale)[0];
    if (power > 0.0f) last = i;
    before += power;
    if (before > bound) return i;
  }
  return last;
}

void choose(const float *logits, int64_t width, double temperature, const double *uniforms, double *masses,
            int64_t *tokens, float *log_probs, int64_t begin, int64_t end) {
  const bool greedy = temperature == 0.0;
  const float scale = greedy ? 1.0f : static_cast<float>(1.0 / temperature);
  const int64_t blocks = (width + CHOICE_BLOCK - 1) / CHOICE_BLOCK;
  for (int64_t row = begin; row < end; row++) {
    const float *from = logits + row * width, most = largest(from, width);
    const auto length = [&](int64_t block) {
      const int64_t left = width - block * CHOICE_BLOCK;
      return left < CHOICE_BLOCK ? left : CHOICE_BLOCK;
    };
    double all = 0.0;
    for (int64_t block = 0; block < blocks; block++)
      all += masses[block] = mass(from + block * CHOICE_BLOCK, length(block), most, scale);
    int64_t token = 0;
    if (greedy) {
      while (token + 1 < width && from[token] != most) token++;
    } else {
      const double bound = uniforms[row] * all;
      double before = 0.0;
      int64_t block = 0;
      while (block + 1 < blocks && before + masses[block] <= bound) before += masses[block++];
      const int64_t first = block * CHOICE_BLOCK;
      token = first + find(from + first, length(block), most, scale, before, bound);
    }
    tokens[row] = token;
    log_probs[row] = static_cast<float>((from[token] - most) * scale - __builtin_log(all));
  }
}

}  // namespace

const Decoding SADDLE_SET(decoding) = {PANEL,
                                       sizeof(Two),
                                       {linear<float, float>, store<float>, attend<float>},
                                       {linear<uint32_t, Two>, store<uint16_t>, attend<uint16_t>},
                                       pair,
                                       attention_scratch,
                                       layer_norm,
                                       gelu,
                                       add,
                                       choose};

}  // namespace saddle
