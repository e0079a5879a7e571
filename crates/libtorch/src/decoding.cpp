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
  int64_t panel = begin;
  for (; rows <= FEW_ROWS && panel + 2 <= end; panel += 2) block<FEW_ROWS, 2, Weight>(product, from, 0, rows, depth, panel);
  for (; panel < end; panel++)
    for (int64_t row = 0; row < rows; row += BLOCK_ROWS)
      block<ROWS, 1, Weight>(product, from, row, rows - row < BLOCK_ROWS ? rows - row : BLOCK_ROWS, depth, panel);
}

INLINE void join(float even, float odd, Two *both) {
  const uint32_t bits[2] = {rounded(even), rounded(odd)};
#ifdef __AVX512BF16__
  *both = bits[0] >> 16 | bits[1];
#else
  __builtin_memcpy(both, bits, sizeof bits);
#endif
}

void pair(const float *input, int64_t width, void *out, int64_t begin, int64_t end) {
  const int64_t depth = (width + 1) / 2;
  for (int64_t row = begin; row < end; row++) {
    const float *from = input + row * width;
    Two *to = static_cast<Two *>(out) + row * depth;
    for (int64_t place = 0; place < width / 2; place++) join(from[2 * place], from[2 * place + 1], to + place);
    if (width % 2 == 1) join(from[width - 1], 0.0f, to + depth - 1);
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

// out[head_size] = Σ weights[t] · values[t] / Σ weights, in columns of up to four vectors.
template <typename Number>
INLINE void mix(const float *weights, int64_t span, const Number *values, int64_t size, float scale, float *out) {
  int64_t i = 0;
  for (; i + 4 * LANES <= size; i += 4 * LANES) {
    lanes sum[4] = {};
    for (int64_t t = 0; t < span; t++)
      for (int part = 0; part < 4; part++) sum[part] += weights[t] * load(values + t * size + i + part * LANES);
    for (int part = 0; part < 4; part++) save(out + i + part * LANES, sum[part] * scale);
  }
  for (; i + LANES <= size; i += LANES) {
    lanes sum = {};
    for (int64_t t = 0; t < span; t++) sum += weights[t] * load(values + t * size + i);
    save(out + i, sum * scale);
  }
  for (; i < size; i++) {
    float sum = 0.0f;
    for (int64_t t = 0; t < span; t++) sum += weights[t] * number(values[t * size + i]);
    out[i] = sum * scale;
  }
}

template <typename Number>
void attend(const Attention &a, float *scratch, int64_t begin, int64_t end) {
  const int64_t group = a.heads / a.kv_heads;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(a.head_size));
  const Number *keys = static_cast<const Number *>(a.keys), *values = static_cast<const Number *>(a.values);
  float *turned = scratch, *scores = scratch + a.head_size;
  for (int64_t pair = begin; pair < end; pair++) {
    const int64_t token = pair / a.kv_heads, shared = pair % a.kv_heads, last = a.positions[token];
    const int64_t first = a.window > 0 && last >= a.window ? last - a.window + 1 : 0, span = last - first + 1;
    const int64_t entry = ((a.rows[token] * a.kv_heads + shared) * a.capacity + first) * a.head_size;
    for (int64_t head = shared * group; head < (shared + 1) * group; head++) {
      const int64_t place = (token * a.heads + head) * a.head_size;
      turn(a.query + place, a.head_size, row_of(a.cosine, last, a.head_size), row_of(a.sine, last, a.head_size), scale,
           turned);
      for (int64_t t = 0; t < span; t++) scores[t] = dot(turned, keys + entry + t * a.head_size, a.head_size);
      const float sum = exponentiate(scores, span, largest_score(scores, span));
      mix(scores, span, values + entry, a.head_size, 1.0f / sum, a.out + place);
    }
  }
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

const Decoding SADDLE_SET(decoding) = {
    PANEL,           sizeof(Two),   linear<float, float>, linear<uint32_t, Two>, pair, store<float>,
    store<uint16_t>, attend<float>, attend<uint16_t>,     choose};

}  // namespace saddle
