// What the kernels of one instruction set are made of: vectors of SADDLE_LANES floats, and the tile of a matrix product.
//
// Included by files that are compiled once for each instruction set. Everything here has internal linkage and is inlined:
// a function that the linker keeps one copy of would run with the flags of whichever set it came from.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
#error "saddle's kernels need g++ 12 or later, or clang; remedy: install one and name it in CXX"
#endif

#ifdef __AVX2__
#include <immintrin.h>  // its functions are always inlined: they leave no copies
#endif

#include <cstdint>

// A table's name with that of the instruction set behind it.
#define SADDLE_JOINED(table, set) table##_##set
#define SADDLE_NAMED(table, set) SADDLE_JOINED(table, set)
#define SADDLE_SET(table) SADDLE_NAMED(table, SADDLE_KERNELS)

namespace saddle {
namespace {

constexpr int LANES = SADDLE_LANES;
constexpr int PANEL = 2 * LANES;
// As many rows as leave their sums in registers.
constexpr int ROWS = SADDLE_LANES == 16 ? 12 : 6;
// Steps of a product's depth a turn of its loop. Wide vectors have work enough in one, and with more of them the compiler runs
// out of registers.
constexpr int STEPS = SADDLE_LANES == 16 ? 1 : 4;

typedef float lanes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

INLINE lanes load(const float *from) { return *reinterpret_cast<const lanes *>(from); }
INLINE words load(const uint32_t *from) { return *reinterpret_cast<const words *>(from); }
// bf16 numbers, widened. Of a conversion without intrinsics the compiler makes six instructions, and g++ 12 warns of the
// unmasked one of 16 numbers.
INLINE lanes load(const uint16_t *from) {
#if SADDLE_LANES == 16
  const auto halves = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
  const words wide = reinterpret_cast<words>(_mm512_maskz_cvtepu16_epi32(0xffff, halves));
#elif SADDLE_LANES == 8
  const words wide = reinterpret_cast<words>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
#else
  typedef uint16_t halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
  const words wide = __builtin_convertvector(*reinterpret_cast<const halves *>(from), words);
#endif
  return reinterpret_cast<lanes>(wide << 16);
}
INLINE void save(float *to, lanes value) { *reinterpret_cast<lanes *>(to) = value; }

// A float rounded to bf16, the nearest, ties to even, as the upper half of a word; what is no number stays none.
INLINE uint32_t rounded(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return value != value ? 0x7fc00000u : (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
}

INLINE void keep(float value, float *place) { *place = value; }
INLINE void keep(float value, uint16_t *place) { *place = static_cast<uint16_t>(rounded(value) >> 16); }

INLINE float number(float value) { return value; }
INLINE float number(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, 4);
  return value;
}

// A step of a product's depth is one multiplication of an input and LANES weights.
template <typename Number>
constexpr int MULTIPLICATIONS = 1;
INLINE float factor(float input, int) { return input; }
INLINE lanes factor(lanes weights, int) { return weights; }
INLINE void add_product(lanes &sum, float input, lanes weights) { sum += input * weights; }

// With bf16 weights it is that of two inputs, rounded as those are: one word for the units that multiply words, else two floats.
#ifdef __AVX512BF16__
typedef uint32_t Two;
INLINE Two factor(Two inputs, int) { return inputs; }
INLINE words factor(words weights, int) { return weights; }
INLINE void add_product(lanes &sum, Two inputs, words weights) {
  sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(words{} + inputs), reinterpret_cast<__m512bh>(weights));
}
#else
struct Two {
  float each[2];
};
template <>
constexpr int MULTIPLICATIONS<Two> = 2;
INLINE float factor(Two inputs, int which) { return inputs.each[which]; }
INLINE lanes factor(words weights, int which) {
  return reinterpret_cast<lanes>(which == 0 ? weights << 16 : weights & 0xffff0000u);
}
#endif

// A matrix of a product, its rows `row` numbers apart and its columns `column`.
template <typename Number>
struct Input {
  const Number *numbers;
  int64_t row;
  int64_t column;
};

// Where a product's sums are kept, rows `width` apart: they begin as `begin`, the same in every row, or go on from what is
// there if that is null.
struct Sums {
  float *numbers;
  int64_t width;
  const float *begin;
};

// Sums that begin at nothing, for as many panels as any tile has.
alignas(64) constexpr float NOTHING[2 * PANEL] = {};

// sums[rows, PANELS · PANEL] += input[rows, depth] · weight, whose panels are `next` numbers apart. What is needed next is
// asked for on the way: `pace` bytes a step.
template <int COUNT, int PANELS, typename Number, typename Weight>
INLINE void tile(Input<Number> input, const Weight *weight, int64_t next, int64_t depth, const char *ahead, int64_t pace,
                 Sums sums) {
  lanes sum[COUNT][PANELS][2];
  for (int row = 0; row < COUNT; row++)
    for (int panel = 0; panel < PANELS; panel++)
      for (int half = 0; half < 2; half++) {
        const int64_t column = panel * PANEL + half * LANES;
        sum[row][panel][half] = load(sums.begin ? sums.begin + column : sums.numbers + row * sums.width + column);
      }
#pragma GCC unroll STEPS
  for (int64_t place = 0; place < depth; place++) {
    for (int panel = 0; panel < PANELS; panel++) {
      const char *line = ahead + panel * next * static_cast<int64_t>(sizeof(Weight)) + place * pace;
      __builtin_prefetch(line, 0, 2);
      if (PANEL * sizeof(Weight) > 64) __builtin_prefetch(line + 64, 0, 2);
      const Weight *here = weight + panel * next + place * PANEL;
      for (int which = 0; which < MULTIPLICATIONS<Number>; which++) {
        const auto low = factor(load(here), which), high = factor(load(here + LANES), which);
        for (int row = 0; row < COUNT; row++) {
          const auto each = factor(input.numbers[row * input.row + place * input.column], which);
          add_product(sum[row][panel][0], each, low);
          add_product(sum[row][panel][1], each, high);
        }
      }
    }
  }
  for (int row = 0; row < COUNT; row++)
    for (int panel = 0; panel < PANELS; panel++)
      for (int half = 0; half < 2; half++)
        save(sums.numbers + row * sums.width + panel * PANEL + half * LANES, sum[row][panel][half]);
}

// The tile of `count` rows, at most COUNT.
template <int COUNT, int PANELS, typename Number, typename Weight>
INLINE void tile_of(int64_t count, Input<Number> input, const Weight *weight, int64_t next, int64_t depth,
                    const char *ahead, int64_t pace, Sums sums) {
  if (count == COUNT) {
    tile<COUNT, PANELS>(input, weight, next, depth, ahead, pace, sums);
  } else if constexpr (COUNT > 1) {
    tile_of<COUNT - 1, PANELS>(count, input, weight, next, depth, ahead, pace, sums);
  }
}

// The numbers 0 to N − 1, for a pack.
template <int... PLACES>
struct Places {};
template <int N, int... PLACES>
struct Upto : Upto<N - 1, N - 1, PLACES...> {};
template <int... PLACES>
struct Upto<0, PLACES...> {
  typedef Places<PLACES...> places;
};
typedef Upto<LANES>::places Each;

template <int STEP, int... PLACES>
INLINE lanes swapped(lanes value, Places<PLACES...>) {
  return __builtin_shufflevector(value, value, (PLACES ^ STEP)...);
}

// Halves are joined until one number is left.
template <int STEP = LANES / 2, typename Join>
INLINE float fold(lanes value, Join join) {
  value = join(value, swapped<STEP>(value, Each{}));
  if constexpr (STEP > 1) return fold<STEP / 2>(value, join);
  return value[0];
}

INLINE float total(lanes value) {
  return fold(value, [](lanes one, lanes other) INLINE_LAMBDA { return one + other; });
}

// The first `count` lanes; the others become `filling`.
template <int... PLACES>
INLINE lanes first_lanes(lanes value, int64_t count, float filling, Places<PLACES...>) {
  typedef int32_t numbers __attribute__((vector_size(LANES * 4)));
  return numbers{PLACES...} < static_cast<int32_t>(count) ? value : lanes{} + filling;
}
INLINE lanes first_lanes(lanes value, int64_t count, float filling) {
  return count >= LANES ? value : first_lanes(value, count, filling, Each{});
}

template <typename Number>
INLINE float dot(const float *one, const Number *other, int64_t length) {
  lanes sum = {};
  int64_t place = 0;
  for (; place + LANES <= length; place += LANES) sum += load(one + place) * load(other + place);
  float rest = total(sum);
  for (; place < length; place++) rest += one[place] * number(other[place]);
  return rest;
}

INLINE float sum_of(const float *numbers, int64_t length) {
  lanes sum = {};
  int64_t place = 0;
  for (; place + LANES <= length; place += LANES) sum += load(numbers + place);
  float rest = total(sum);
  for (; place < length; place++) rest += numbers[place];
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

INLINE float largest(lanes values) {
  return fold(values, [](lanes one, lanes other) INLINE_LAMBDA { return one > other ? one : other; });
}

INLINE float largest(const float *values, int64_t count) {
  lanes most = lanes{} + values[0];
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) most = load(values + i) > most ? load(values + i) : most;
  float largest_yet = largest(most);
  for (; i < count; i++) largest_yet = values[i] > largest_yet ? values[i] : largest_yet;
  return largest_yet;
}

// The largest of scores[span], behind which a whole vector can be read.
INLINE float largest_score(const float *scores, int64_t span) {
  lanes most = lanes{} + scores[0];
  for (int64_t i = 0; i < span; i += LANES) {
    const lanes here = first_lanes(load(scores + i), span - i, scores[0]);
    most = here > most ? here : most;
  }
  return largest(most);
}

// Each of scores[span] becomes e^(score − most), and what fills their last vector zero; returns their sum.
INLINE float exponentiate(float *scores, int64_t span, float most) {
  lanes sum = {};
  for (int64_t i = 0; i < span; i += LANES) {
    const lanes power = first_lanes(exponential(load(scores + i) - most), span - i, 0.0f);
    save(scores + i, power);
    sum += power;
  }
  return total(sum);
}

// e^x, but nothing where a token with it is out of the question.
INLINE lanes probability(lanes x) { return x < -87.0f ? lanes{} : exponential(x); }

// Turns a head by its position's cosines and sines (RoPE with halves side by side), unless there are none, times `scale`.
template <typename Number>
INLINE void turn(const float *head, int64_t size, const float *cosine, const float *sine, float scale,
                 Number *__restrict out) {
  const int64_t half = size / 2;
  if (cosine == nullptr) {
    for (int64_t i = 0; i < size; i++) keep(head[i] * scale, out + i);
    return;
  }
  for (int64_t i = 0; i < half; i++) keep((head[i] * cosine[i] - head[i + half] * sine[i]) * scale, out + i);
  for (int64_t i = half; i < size; i++) keep((head[i] * cosine[i] + head[i - half] * sine[i]) * scale, out + i);
}

// A position's row of a table of cosines or sines, where there is one.
INLINE const float *row_of(const float *table, int64_t position, int64_t size) {
  return table == nullptr ? nullptr : table + position * size;
}

}  // namespace
}  // namespace saddle
