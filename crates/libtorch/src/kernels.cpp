// The kernels of kernels.h in vectors of SADDLE_LANES floats, under the name SADDLE_KERNELS. Compiled with the flags of one
// instruction set each time, so no header with inline functions may come in: the linker would keep one copy for all.

#ifdef __AVX512BF16__
#include <immintrin.h>  // its functions are always inlined: they leave no copies
#endif

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
// Logits whose probabilities are summed in float32, before the sums are added up in float64.
constexpr int64_t CHOICE_BLOCK = 1024;

typedef float lanes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#define INLINE inline __attribute__((always_inline))

INLINE lanes load(const float *from) { return *reinterpret_cast<const lanes *>(from); }
INLINE words load(const uint32_t *from) { return *reinterpret_cast<const words *>(from); }
INLINE void save(float *to, lanes value) { *reinterpret_cast<lanes *>(to) = value; }

// What one step of a product's depth adds to LANES outputs: one input's share, or that of a word's two.
INLINE void add_product(lanes &sum, float input, lanes weight) { sum += input * weight; }
INLINE void add_product(lanes &sum, uint32_t input, words weight) {
  const words pair = words{} + input;
#ifdef __AVX512BF16__
  sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(pair), reinterpret_cast<__m512bh>(weight));
#else
  sum += reinterpret_cast<lanes>(pair << 16) * reinterpret_cast<lanes>(weight << 16);
  sum += reinterpret_cast<lanes>(pair & 0xffff0000u) * reinterpret_cast<lanes>(weight & 0xffff0000u);
#endif
}

// sums[rows, PANELS, PANEL] += input[rows, depth] · weight. What is needed next is asked for on the way: `pace` bytes a step.
template <int COUNT, int PANELS, typename Number>
INLINE void tile(const Number *input, int64_t stride, const Number *weight, int64_t next, int64_t depth,
                 const char *ahead, int64_t pace, float *sums) {
  lanes sum[COUNT][PANELS][2];
  for (int row = 0; row < COUNT; row++)
    for (int panel = 0; panel < PANELS; panel++)
      for (int half = 0; half < 2; half++)
        sum[row][panel][half] = load(sums + (row * PANELS + panel) * PANEL + half * LANES);
  for (int64_t place = 0; place < depth; place++) {
    for (int panel = 0; panel < PANELS; panel++) {
      const char *line = ahead + panel * next * static_cast<int64_t>(sizeof(Number)) + place * pace;
      __builtin_prefetch(line, 0, 2);
      if (PANEL * sizeof(Number) > 64) __builtin_prefetch(line + 64, 0, 2);
      const auto low = load(weight + panel * next + place * PANEL);
      const auto high = load(weight + panel * next + place * PANEL + LANES);
      for (int row = 0; row < COUNT; row++) {
        add_product(sum[row][panel][0], input[row * stride + place], low);
        add_product(sum[row][panel][1], input[row * stride + place], high);
      }
    }
  }
  for (int row = 0; row < COUNT; row++)
    for (int panel = 0; panel < PANELS; panel++)
      for (int half = 0; half < 2; half++)
        save(sums + (row * PANELS + panel) * PANEL + half * LANES, sum[row][panel][half]);
}

// The tile of `count` rows, at most COUNT.
template <int COUNT, int PANELS, typename Number>
INLINE void tile_of(int64_t count, const Number *input, int64_t stride, const Number *weight, int64_t next,
                    int64_t depth, const char *ahead, int64_t pace, float *sums) {
  if (count == COUNT) {
    tile<COUNT, PANELS>(input, stride, weight, next, depth, ahead, pace, sums);
  } else if constexpr (COUNT > 1) {
    tile_of<COUNT - 1, PANELS>(count, input, stride, weight, next, depth, ahead, pace, sums);
  }
}

INLINE void begin_sums(const Product &product, int64_t panel, int64_t width, int64_t rows, float *sums) {
  for (int64_t row = 0; row < rows; row++)
    for (int64_t column = 0; column < width; column++)
      sums[row * width + column] = product.bias ? product.bias[panel * PANEL + column] : 0.0f;
}

INLINE void end_sums(const Product &product, int64_t panel, int64_t width, int64_t row, int64_t rows, const float *sums) {
  const int64_t first = panel * PANEL, left = product.outputs - first, real = left < width ? left : width;
  for (int64_t each = 0; each < rows; each++)
    for (int64_t column = 0; column < real; column++)
      product.out[(row + each) * product.outputs + first + column] = sums[each * width + column];
}

// PANELS panels from `panel` on, for at most BLOCK_ROWS rows from `row` on, COUNT of them at a time.
template <int COUNT, int PANELS, typename Number>
INLINE void block(const Product &product, const Number *input, int64_t row, int64_t rows, int64_t depth, int64_t panel) {
  alignas(64) float sums[BLOCK_ROWS * PANEL];
  const int64_t width = PANELS * PANEL, next = depth * PANEL;
  const int64_t parts = (depth + BLOCK_DEPTH - 1) / BLOCK_DEPTH, tiles = (rows + COUNT - 1) / COUNT;
  const Number *weights = static_cast<const Number *>(product.weight);
  begin_sums(product, panel, width, rows, sums);
  for (int64_t part = 0; part < parts; part++) {
    const int64_t begin = depth * part / parts, end = depth * (part + 1) / parts;
    const Number *weight = weights + panel * next + begin * PANEL;
    const Number *following = part + 1 < parts ? weights + panel * next + end * PANEL : weights + (panel + PANELS) * next;
    const int64_t pace = PANEL * sizeof(Number) / tiles;
    for (int64_t each = 0; each < tiles; each++) {
      const int64_t first = rows * each / tiles, last = rows * (each + 1) / tiles;
      const char *ahead = reinterpret_cast<const char *>(following) + each * (end - begin) * pace;
      tile_of<COUNT, PANELS>(last - first, input + (row + first) * depth + begin, depth, weight, next, end - begin, ahead,
                             pace, sums + first * width);
    }
  }
  end_sums(product, panel, width, row, rows, sums);
}

template <typename Number>
void linear(const Product &product, const void *input, int64_t rows, int64_t depth, int64_t begin, int64_t end) {
  const Number *from = static_cast<const Number *>(input);
  int64_t panel = begin;
  for (; rows <= FEW_ROWS && panel + 2 <= end; panel += 2) block<FEW_ROWS, 2>(product, from, 0, rows, depth, panel);
  for (; panel < end; panel++)
    for (int64_t row = 0; row < rows; row += BLOCK_ROWS)
      block<ROWS, 1>(product, from, row, rows - row < BLOCK_ROWS ? rows - row : BLOCK_ROWS, depth, panel);
}

// The upper half of a float, rounded to the nearest, ties to even; what is no number stays none.
INLINE uint32_t half(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return value != value ? 0x7fc0u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

void pair(const float *input, int64_t width, uint32_t *out, int64_t begin, int64_t end) {
  const int64_t depth = (width + 1) / 2;
  for (int64_t row = begin; row < end; row++) {
    const float *from = input + row * width;
    uint32_t *to = out + row * depth;
    for (int64_t place = 0; place < width / 2; place++) to[place] = half(from[2 * place]) | half(from[2 * place + 1]) << 16;
    if (width % 2 == 1) to[depth - 1] = half(from[width - 1]);
  }
}

// Halves are added until one number is left.
INLINE float total(lanes value) {
#if SADDLE_LANES == 16
  value += __builtin_shufflevector(value, value, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  value += __builtin_shufflevector(value, value, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3);
  value += __builtin_shufflevector(value, value, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1);
#elif SADDLE_LANES == 8
  value += __builtin_shufflevector(value, value, 4, 5, 6, 7, 0, 1, 2, 3);
  value += __builtin_shufflevector(value, value, 2, 3, 0, 1, 2, 3, 0, 1);
#else
  value += __builtin_shufflevector(value, value, 2, 3, 0, 1);
#endif
  return value[0] + value[1];
}

INLINE float dot(const float *one, const float *other, int64_t length) {
  lanes sum = {};
  int64_t place = 0;
  for (; place + LANES <= length; place += LANES) sum += load(one + place) * load(other + place);
  float rest = total(sum);
  for (; place < length; place++) rest += one[place] * other[place];
  return rest;
}

// e^x to 2 units in the last place: 2^n · e^r with |r| ≤ ln 2 / 2 and Cephes' polynomial. Below −87, what −87 gives; NaN stays.
INLINE lanes exponential(lanes x) {
  x = x < -87.0f ? lanes{} - 87.0f : x;
  x = x > 88.0f ? lanes{} + 88.0f : x;
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

INLINE float largest(const float *values, int64_t count) {
  lanes most = lanes{} + values[0];
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) most = load(values + i) > most ? load(values + i) : most;
  float largest = most[0];
  for (int lane = 1; lane < LANES; lane++) largest = most[lane] > largest ? most[lane] : largest;
  for (; i < count; i++) largest = values[i] > largest ? values[i] : largest;
  return largest;
}

// Each of scores[span] becomes e^(score − largest); returns their sum.
INLINE float exponentiate(float *scores, int64_t span) {
  const float most = largest(scores, span);
  lanes sum = {};
  int64_t t = 0;
  for (; t + LANES <= span; t += LANES) {
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

// e^x, but nothing where a token with it is out of the question.
INLINE lanes probability(lanes x) { return x < -87.0f ? lanes{} : exponential(x); }

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

void adamw(const Step &step, float *__restrict weights, float *__restrict gradient, float *__restrict means,
           float *__restrict squares, int64_t begin, int64_t end) {
  const Step s = step;
  const float rate = s.rate / s.mean_correction;
  for (int64_t i = begin; i < end; i++) {
    const float slope = gradient[i] * s.scale;
    const float mean = means[i] * s.beta1 + slope * (1.0f - s.beta1);
    const float square = squares[i] * s.beta2 + slope * slope * (1.0f - s.beta2);
    weights[i] = weights[i] * s.decay - rate * mean / (__builtin_sqrtf(square / s.square_correction) + s.epsilon);
    means[i] = mean, squares[i] = square, gradient[i] = 0.0f;
  }
}

}  // namespace

const Kernels SADDLE_KERNELS = {PANEL,  linear<float>, linear<uint32_t>, pair,  store,
                                attend, rms_norm,      swiglu,           choose, adamw};

}  // namespace saddle
