// The kernels of kernels.h in vectors of SADDLE_LANES floats, under the name SADDLE_KERNELS. Compiled with the flags of one
// instruction set each time, so no header with inline functions may come in: the linker would keep one copy for all.

#include "kernels.h"

namespace saddle {
namespace {

constexpr int LANES = SADDLE_LANES;
constexpr int PANEL = 2 * LANES;
// As many rows as leave their sums in registers.
constexpr int ROWS = SADDLE_LANES == 16 ? 12 : 6;
// So few rows are summed for two panels at a time: one alone would wait for its own additions.
constexpr int FEW_ROWS = 3;
// Rows whose sums are kept beside a panel, and depth of a part of the panel that stays in the first-level cache.
constexpr int BLOCK_ROWS = 16 * ROWS;
constexpr int64_t BLOCK_DEPTH = 256;
// The processor's own read-ahead stops at pages; this one is told where the weights go on.
constexpr int64_t AHEAD_BYTES = 512;

typedef float lanes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#define INLINE inline __attribute__((always_inline))

INLINE lanes load(const float *from) { return *reinterpret_cast<const lanes *>(from); }
INLINE void save(float *to, lanes value) { *reinterpret_cast<lanes *>(to) = value; }

// One input's weights to a panel of outputs.
INLINE void widen(const float *weight, lanes &low, lanes &high) { low = load(weight), high = load(weight + LANES); }
INLINE void widen(const uint16_t *weight, lanes &low, lanes &high) {
  const words pairs = *reinterpret_cast<const words *>(weight);
  low = reinterpret_cast<lanes>(pairs << 16), high = reinterpret_cast<lanes>(pairs & 0xffff0000u);
}

// sums[rows, PANELS, PANEL] += input[rows, depth] · weight.
template <int COUNT, int PANELS, typename Weight>
INLINE void tile(const float *input, int64_t stride, const Weight *weight, int64_t next, int64_t depth, float *sums) {
  lanes sum[COUNT][PANELS][2];
  for (int row = 0; row < COUNT; row++)
    for (int panel = 0; panel < PANELS; panel++)
      for (int half = 0; half < 2; half++)
        sum[row][panel][half] = load(sums + (row * PANELS + panel) * PANEL + half * LANES);
  for (int64_t place = 0; place < depth; place++) {
    for (int panel = 0; panel < PANELS; panel++) {
      const Weight *from = weight + panel * next + place * PANEL;
      __builtin_prefetch(reinterpret_cast<const char *>(from) + AHEAD_BYTES);
      lanes low, high;
      widen(from, low, high);
      for (int row = 0; row < COUNT; row++) {
        const float factor = input[row * stride + place];
        sum[row][panel][0] += factor * low;
        sum[row][panel][1] += factor * high;
      }
    }
  }
  for (int row = 0; row < COUNT; row++)
    for (int panel = 0; panel < PANELS; panel++)
      for (int half = 0; half < 2; half++)
        save(sums + (row * PANELS + panel) * PANEL + half * LANES, sum[row][panel][half]);
}

// The tile of `count` rows, at most COUNT.
template <int COUNT, int PANELS, typename Weight>
INLINE void tile_of(int64_t count, const float *input, int64_t stride, const Weight *weight, int64_t next,
                    int64_t depth, float *sums) {
  if (count == COUNT) {
    tile<COUNT, PANELS>(input, stride, weight, next, depth, sums);
  } else if constexpr (COUNT > 1) {
    tile_of<COUNT - 1, PANELS>(count, input, stride, weight, next, depth, sums);
  }
}

template <int PANELS>
INLINE void begin_sums(const Product &product, int64_t panel, int64_t rows, float *sums) {
  for (int64_t row = 0; row < rows; row++)
    for (int64_t column = 0; column < PANELS * PANEL; column++)
      sums[row * PANELS * PANEL + column] = product.bias ? product.bias[panel * PANEL + column] : 0.0f;
}

template <int PANELS>
INLINE void end_sums(const Product &product, int64_t panel, int64_t row, int64_t rows, const float *sums) {
  const int64_t first = panel * PANEL, left = product.outputs - first;
  const int64_t width = left < PANELS * PANEL ? left : PANELS * PANEL;
  for (int64_t each = 0; each < rows; each++)
    for (int64_t column = 0; column < width; column++)
      product.out[(row + each) * product.outputs + first + column] = sums[each * PANELS * PANEL + column];
}

template <typename Weight>
void linear(const Product &product, const float *input, int64_t rows, int64_t depth, int64_t begin, int64_t end) {
  const Weight *weights = static_cast<const Weight *>(product.weight);
  const int64_t next = depth * PANEL;
  alignas(64) float sums[BLOCK_ROWS * PANEL];
  int64_t panel = begin;
  for (; rows <= FEW_ROWS && panel + 2 <= end; panel += 2) {
    begin_sums<2>(product, panel, rows, sums);
    tile_of<FEW_ROWS, 2>(rows, input, depth, weights + panel * next, next, depth, sums);
    end_sums<2>(product, panel, 0, rows, sums);
  }
  for (; panel < end; panel++) {
    for (int64_t row = 0; row < rows; row += BLOCK_ROWS) {
      const int64_t block = rows - row < BLOCK_ROWS ? rows - row : BLOCK_ROWS;
      const int64_t parts = (block + ROWS - 1) / ROWS;
      begin_sums<1>(product, panel, block, sums);
      for (int64_t place = 0; place < depth; place += BLOCK_DEPTH) {
        const int64_t part_depth = depth - place < BLOCK_DEPTH ? depth - place : BLOCK_DEPTH;
        const Weight *weight = weights + panel * next + place * PANEL;
        for (int64_t part = 0; part < parts; part++) {
          const int64_t first = block * part / parts, last = block * (part + 1) / parts;
          tile_of<ROWS, 1>(last - first, input + (row + first) * depth + place, depth, weight, next, part_depth,
                           sums + first * PANEL);
        }
      }
      end_sums<1>(product, panel, row, block, sums);
    }
  }
}

INLINE float total(lanes value) {
  float sum = 0.0f;
  for (int lane = 0; lane < LANES; lane++) sum += value[lane];
  return sum;
}

INLINE float dot(const float *one, const float *other, int64_t length) {
  lanes sum = {};
  int64_t place = 0;
  for (; place + LANES <= length; place += LANES) sum += load(one + place) * load(other + place);
  float rest = total(sum);
  for (; place < length; place++) rest += one[place] * other[place];
  return rest;
}

// e^x to 2 units in the last place: 2^n · e^r with |r| ≤ ln 2 / 2 and Cephes' polynomial. Below −87, what −87 gives.
INLINE lanes exponential(lanes x) {
  x = x > -87.0f ? x : lanes{} - 87.0f;
  x = x < 88.0f ? x : lanes{} + 88.0f;
  const lanes shifted = x * 1.44269504088896341f + 12582912.0f;  // rounds: what remains of 2^23's digits is the integer
  const lanes n = shifted - 12582912.0f;
  const lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  lanes y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  const words power = (reinterpret_cast<words>(shifted) + 127u) << 23;
  return y * reinterpret_cast<lanes>(power);
}

// Turns a head as position `position` asks (RoPE with halves side by side); copies it where nothing turns.
INLINE void turn(const Attention &a, const float *head, int64_t position, float *out) {
  const int64_t half = a.head_size / 2;
  if (a.cosine == nullptr) {
    for (int64_t i = 0; i < a.head_size; i++) out[i] = head[i];
    return;
  }
  const float *cosine = a.cosine + position * a.head_size, *sine = a.sine + position * a.head_size;
  for (int64_t i = 0; i < half; i++) {
    out[i] = head[i] * cosine[i] - head[i + half] * sine[i];
    out[i + half] = head[i + half] * cosine[i + half] + head[i] * sine[i + half];
  }
}

void store(const Attention &a, int64_t begin, int64_t end) {
  const int64_t width = a.kv_heads * a.head_size;
  for (int64_t token = begin; token < end; token++) {
    const int64_t entry = (a.rows[token] * a.capacity + a.positions[token]) * width;
    for (int64_t head = 0; head < a.kv_heads; head++)
      turn(a, a.key + token * width + head * a.head_size, a.positions[token], a.keys + entry + head * a.head_size);
    for (int64_t i = 0; i < width; i++) a.values[entry + i] = a.value[token * width + i];
  }
}

// out[head_size] = Σ weights[t] · values[t] / Σ weights, in columns of up to four vectors.
INLINE void mix(const float *weights, int64_t span, const float *values, int64_t stride, int64_t size, float scale,
                float *out) {
  int64_t i = 0;
  for (; i + 4 * LANES <= size; i += 4 * LANES) {
    lanes sum[4] = {};
    for (int64_t t = 0; t < span; t++)
      for (int part = 0; part < 4; part++) sum[part] += weights[t] * load(values + t * stride + i + part * LANES);
    for (int part = 0; part < 4; part++) save(out + i + part * LANES, sum[part] * scale);
  }
  for (; i + LANES <= size; i += LANES) {
    lanes sum = {};
    for (int64_t t = 0; t < span; t++) sum += weights[t] * load(values + t * stride + i);
    save(out + i, sum * scale);
  }
  for (; i < size; i++) {
    float sum = 0.0f;
    for (int64_t t = 0; t < span; t++) sum += weights[t] * values[t * stride + i];
    out[i] = sum * scale;
  }
}

// Each of scores[span] becomes e^(score − largest); returns their sum.
INLINE float exponentiate(float *scores, int64_t span) {
  lanes largest = lanes{} + scores[0], sum = {};
  int64_t t = 0;
  for (; t + LANES <= span; t += LANES) largest = load(scores + t) > largest ? load(scores + t) : largest;
  float most = largest[0];
  for (int lane = 1; lane < LANES; lane++) most = largest[lane] > most ? largest[lane] : most;
  for (; t < span; t++) most = scores[t] > most ? scores[t] : most;
  for (t = 0; t + LANES <= span; t += LANES) {
    const lanes power = exponential(load(scores + t) - most);
    save(scores + t, power);
    sum += power;
  }
  float rest = total(sum);
  for (; t < span; t++) rest += scores[t] = exponential(lanes{} + (scores[t] - most))[0];
  return rest;
}

void attend(const Attention &a, float *scratch, int64_t begin, int64_t end) {
  const int64_t group = a.heads / a.kv_heads, stride = a.kv_heads * a.head_size;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(a.head_size));
  float *turned = scratch, *scores = scratch + a.head_size;
  for (int64_t pair = begin; pair < end; pair++) {
    const int64_t token = pair / a.kv_heads, shared = pair % a.kv_heads, last = a.positions[token];
    const int64_t first = a.window > 0 && last >= a.window ? last - a.window + 1 : 0, span = last - first + 1;
    const int64_t entry = (a.rows[token] * a.capacity + first) * stride + shared * a.head_size;
    for (int64_t head = shared * group; head < (shared + 1) * group; head++) {
      const int64_t place = (token * a.heads + head) * a.head_size;
      turn(a, a.query + place, last, turned);
      for (int64_t i = 0; i < a.head_size; i++) turned[i] *= scale;
      for (int64_t t = 0; t < span; t++) scores[t] = dot(turned, a.keys + entry + t * stride, a.head_size);
      const float sum = exponentiate(scores, span);
      mix(scores, span, a.values + entry, stride, a.head_size, 1.0f / sum, a.out + place);
    }
  }
}

void rms_norm(const float *input, const float *weight, double epsilon, int64_t width, float *out, int64_t begin,
              int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    const float *from = input + row * width;
    float *to = out + row * width;
    const float mean = dot(from, from, width) / static_cast<float>(width);
    const float factor = 1.0f / __builtin_sqrtf(mean + static_cast<float>(epsilon));
    for (int64_t i = 0; i < width; i++) to[i] = from[i] * factor * weight[i];
  }
}

void swiglu(const float *gate, const float *up, float *out, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + LANES <= end; i += LANES) {
    const lanes x = load(gate + i);
    save(out + i, x / (exponential(-x) + 1.0f) * load(up + i));
  }
  for (; i < end; i++) out[i] = gate[i] / (exponential(lanes{} - gate[i])[0] + 1.0f) * up[i];
}

}  // namespace

const Kernels SADDLE_KERNELS = {PANEL, linear<float>, linear<uint16_t>, store, attend, rms_norm, swiglu};

}  // namespace saddle
