// The training kernels of kernels.h for one instruction set.

#include "kernels.h"

#include "vectors.h"

namespace saddle {
namespace {

// Queries whose scores are kept together in a backward pass.
constexpr int64_t BLOCK = 4 * ROWS;
// Exponentials are summed up in float32 so many at a time, and these sums in float64.
constexpr int64_t SUM_BLOCK = 1024;

INLINE int64_t panels_of(int64_t count) { return (count + PANEL - 1) / PANEL; }
INLINE int64_t padded(int64_t count) { return panels_of(count) * PANEL; }
INLINE void clear(float *numbers, int64_t count) {
  if (count > 0) __builtin_memset(numbers, 0, static_cast<uint64_t>(count) * sizeof(float));
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

void rms_norm_backward(const float *__restrict input, const float *__restrict weight, double epsilon, int64_t width,
                       const float *__restrict out_gradient, float *__restrict input_gradient,
                       float *__restrict weight_gradient, int64_t begin, int64_t end) {
  clear(weight_gradient, width);
  for (int64_t row = begin; row < end; row++) {
    const float *x = input + row * width, *slope = out_gradient + row * width;
    float *to = input_gradient + row * width;
    const float mean = dot(x, x, width) / static_cast<float>(width);
    const float factor = 1.0f / __builtin_sqrtf(mean + static_cast<float>(epsilon));
    for (int64_t i = 0; i < width; i++) to[i] = slope[i] * weight[i];
    const float common = dot(to, x, width) / static_cast<float>(width) * factor * factor;
    for (int64_t i = 0; i < width; i++) {
      to[i] = (to[i] - x[i] * common) * factor;
      weight_gradient[i] += slope[i] * x[i] * factor;
    }
  }
}

INLINE lanes sigmoid(lanes x) { return 1.0f / (exponential(-x) + 1.0f); }

void swiglu(const float *gate, const float *up, float *out, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + LANES <= end; i += LANES) {
    const lanes x = load(gate + i);
    save(out + i, x / (exponential(-x) + 1.0f) * load(up + i));
  }
  for (; i < end; i++) out[i] = gate[i] / (exponential(lanes{} - gate[i])[0] + 1.0f) * up[i];
}

void swiglu_backward(const float *gate, const float *up, const float *out_gradient, float *gate_gradient,
                     float *up_gradient, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + LANES <= end; i += LANES) {
    const lanes x = load(gate + i), slope = load(out_gradient + i), part = sigmoid(x);
    save(up_gradient + i, slope * x * part);
    save(gate_gradient + i, slope * load(up + i) * part * (x * (1.0f - part) + 1.0f));
  }
  for (; i < end; i++) {
    const float part = sigmoid(lanes{} + gate[i])[0];
    up_gradient[i] = out_gradient[i] * gate[i] * part;
    gate_gradient[i] = out_gradient[i] * up[i] * part * (gate[i] * (1.0f - part) + 1.0f);
  }
}

// sums[rows, panels · PANEL] = input[rows, depth] · weight, or as much more where they are to GO_ON. Of what is DOWN, rows
// stand side by side.
template <bool DOWN, bool GO_ON>
__attribute__((noinline)) void multiply(const float *input, int64_t stride, int64_t rows, const float *weight, int64_t next,
                                        int64_t panels, int64_t depth, float *sums, int64_t width) {
  for (int64_t row = 0; row < rows; row += ROWS) {
    const int64_t count = rows - row < ROWS ? rows - row : ROWS;
    const Input<float> from = DOWN ? Input<float>{input + row, 1, stride} : Input<float>{input + row * stride, stride, 1};
    for (int64_t panel = 0; panel < panels; panel++) {
      const float *here = weight + panel * next;
      tile_of<ROWS, 1>(count, from, here, next, depth, reinterpret_cast<const char *>(here), 0,
                       Sums{sums + row * width + panel * PANEL, width, GO_ON ? nullptr : NOTHING});
    }
  }
}

// The heads of one (sequence, key-value head) pair.
struct Pair {
  int64_t first;   // token
  int64_t length;  // of the sequence
  int64_t shared;  // key-value head
  int64_t group;   // query heads that share it
  int64_t size;    // of a head
  int64_t wide;    // the same in whole panels
  int64_t reach;   // the sequence's length in whole panels
  float scale;     // of scores
};

INLINE Pair pair_of(const Sequences &s, int64_t index) {
  const int64_t sequence = index / s.kv_heads, first = s.starts[sequence], length = s.starts[sequence + 1] - first;
  return {first,       length,         index % s.kv_heads, s.heads / s.kv_heads,
          s.head_size, padded(s.head_size), padded(length),     1.0f / __builtin_sqrtf(static_cast<float>(s.head_size))};
}

INLINE const float *key_of(const Sequences &s, const Pair &p, const float *keys, int64_t place) {
  return keys + ((p.first + place) * s.kv_heads + p.shared) * p.size;
}

INLINE int64_t query_place(const Sequences &s, const Pair &p, int64_t head, int64_t place) {
  return ((p.first + place) * s.heads + p.shared * p.group + head) * p.size;
}

INLINE void turned(const Sequences &s, const Pair &p, const float *head, int64_t place, float scale, float *out) {
  turn(head, p.size, row_of(s.cosine, place, p.size), row_of(s.sine, place, p.size), scale, out);
}

// What turning back makes of a gradient, times `scale`.
INLINE void turn_back(const Sequences &s, const Pair &p, const float *gradient, int64_t place, float scale,
                      float *__restrict out) {
  const float *cosine = row_of(s.cosine, place, p.size), *sine = row_of(s.sine, place, p.size);
  const int64_t half = p.size / 2;
  if (cosine == nullptr) {
    for (int64_t i = 0; i < p.size; i++) out[i] = gradient[i] * scale;
    return;
  }
  for (int64_t i = 0; i < half; i++) out[i] = (gradient[i] * cosine[i] + gradient[i + half] * sine[i + half]) * scale;
  for (int64_t i = half; i < p.size; i++) out[i] = (gradient[i] * cosine[i] - gradient[i - half] * sine[i - half]) * scale;
}

// A row in panels that are `next` numbers apart, zero behind its end.
INLINE void spread(const float *row, int64_t size, int64_t next, float *panels) {
  int64_t start = 0;
  for (; start + PANEL <= size; start += PANEL, panels += next) {
    save(panels, load(row + start));
    save(panels + LANES, load(row + start + LANES));
  }
  if (start == size) return;
  for (int64_t i = 0; i < PANEL; i++) panels[i] = start + i < size ? row[start + i] : 0.0f;
}

template <int STEP, int... PLACES>
INLINE void exchange(lanes &one, lanes &other, Places<PLACES...>) {
  const lanes low = __builtin_shufflevector(one, other, ((PLACES & STEP) ? PLACES - STEP + LANES : PLACES)...);
  other = __builtin_shufflevector(one, other, ((PLACES & STEP) ? PLACES + LANES : PLACES + STEP)...);
  one = low;
}

// Rows become columns.
template <int STEP = 1>
INLINE void transpose(lanes (&square)[LANES]) {
  for (int row = 0; row < LANES; row++)
    if ((row & STEP) == 0) exchange<STEP>(square[row], square[row + STEP], Each{});
  if constexpr (2 * STEP < LANES) transpose<2 * STEP>(square);
}

// Rows [length, size], `stride` apart, as columns of panels [reach / PANEL, size, PANEL]; zero behind the last.
void stand(const float *rows, int64_t stride, int64_t length, int64_t size, float *panels) {
  for (int64_t place = 0; place < padded(length); place += LANES) {
    float *to = panels + place / PANEL * size * PANEL + place % PANEL;
    const int64_t count = length - place < LANES ? length - place : LANES;
    int64_t column = 0;
    for (; column + LANES <= size; column += LANES) {
      lanes square[LANES];
      for (int row = 0; row < LANES; row++) square[row] = row < count ? load(rows + (place + row) * stride + column) : lanes{};
      transpose(square);
      for (int row = 0; row < LANES; row++) save(to + (column + row) * PANEL, square[row]);
    }
    for (; column < size; column++)
      for (int row = 0; row < LANES; row++) to[column * PANEL + row] = row < count ? rows[(place + row) * stride + column] : 0.0f;
  }
}

// The first token that the one at `place` sees.
INLINE int64_t first_seen(const Sequences &s, int64_t place) {
  return s.window > 0 && place >= s.window ? place - s.window + 1 : 0;
}

int64_t sequences_scratch(int64_t longest, int64_t head_size) {
  const int64_t reach = padded(longest), wide = padded(head_size);
  return reach * (3 * head_size + 3 * wide + 2 * BLOCK) + BLOCK * (head_size + 3 * wide) + LANES;
}

// Scores of `rows` queries from `place` on with the keys from `low` on, each row `reach` apart: as far as each tile of them sees.
INLINE void score(const Pair &p, const float *queries, int64_t stride, int64_t place, int64_t rows, int64_t low,
                  const float *keys, float *scores) {
  for (int64_t row = 0; row < rows; row += ROWS) {
    const int64_t count = rows - row < ROWS ? rows - row : ROWS;
    const int64_t panels = panels_of(place + row + count - low);
    multiply<false, false>(queries + row * stride, stride, count, keys + low * p.size, p.size * PANEL, panels, p.size,
                    scores + row * p.reach + low, p.reach);
  }
}

void attend(const Sequences &s, int64_t index, float *scratch, const Attended &to) {
  const Pair p = pair_of(s, index);
  float *keys = scratch, *values = keys + p.reach * p.size, *turned_keys = values + p.length * p.wide;
  float *queries = turned_keys + p.length * p.size, *mixed = queries + ROWS * p.size, *scores = mixed + ROWS * p.wide;
  for (int64_t place = 0; place < p.length; place++) {
    turned(s, p, key_of(s, p, s.key, place), place, 1.0f, turned_keys + place * p.size);
    spread(key_of(s, p, s.value, place), p.size, p.length * PANEL, values + place * PANEL);
  }
  stand(turned_keys, p.size, p.length, p.size, keys);
  for (int64_t head = 0; head < p.group; head++) {
    for (int64_t place = 0; place < p.length; place += ROWS) {
      const int64_t rows = p.length - place < ROWS ? p.length - place : ROWS;
      const int64_t low = first_seen(s, place) / PANEL * PANEL, high = place + rows;
      for (int64_t row = 0; row < rows; row++) {
        turned(s, p, s.query + query_place(s, p, head, place + row), place + row, p.scale, queries + row * p.size);
      }
      score(p, queries, p.size, place, rows, low, keys, scores);
      float sums[ROWS];
      for (int64_t row = 0; row < rows; row++) {
        float *own = scores + row * p.reach;
        const int64_t first = first_seen(s, place + row), span = place + row + 1 - first;
        const float most = largest_score(own + first, span);
        sums[row] = exponentiate(own + first, span, most);
        clear(own + low, first - low);
        clear(own + first + span, high - first - span);
        to.masses[(p.first + place + row) * s.heads + p.shared * p.group + head] = most + __builtin_logf(sums[row]);
      }
      multiply<false, false>(scores + low, p.reach, rows, values + low * PANEL, p.length * PANEL, panels_of(p.size), high - low,
                      mixed, p.wide);
      for (int64_t row = 0; row < rows; row++) {
        float *out = to.out + query_place(s, p, head, place + row);
        for (int64_t i = 0; i < p.size; i++) out[i] = mixed[row * p.wide + i] / sums[row];
      }
    }
  }
}

// Scores and their gradients before the softmax, [rows, reach] each, become probabilities and the scores' gradients.
INLINE void soften(const Sequences &s, int64_t place, int64_t low, int64_t end, float mass, float common,
                   float *scores, float *slopes) {
  const int64_t first = first_seen(s, place);
  clear(scores + low, first - low);
  clear(slopes + low, first - low);
  for (int64_t t = first; t <= place; t += LANES) {
    const lanes power = first_lanes(exponential(load(scores + t) - mass), place + 1 - t, 0.0f);
    save(scores + t, power);
    save(slopes + t, first_lanes(power * (load(slopes + t) - common), place + 1 - t, 0.0f));
  }
  clear(scores + place + 1, end - place - 1);
  clear(slopes + place + 1, end - place - 1);
}

void attend_backward(const Sequences &s, int64_t index, float *scratch, const Attended &from, const SequenceGradients &to) {
  const Pair p = pair_of(s, index);
  const int64_t panels = panels_of(p.size), next = p.length * PANEL, stride = s.heads * p.size;
  float *keys = scratch, *values = keys + p.reach * p.size, *turned_keys = values + p.reach * p.size;
  float *key_rows = turned_keys + p.length * p.size, *key_slopes = key_rows + p.length * p.wide, *value_slopes = key_slopes + p.length * p.wide;
  float *queries = value_slopes + p.length * p.wide, *query_panels = queries + BLOCK * p.size;
  float *out_panels = query_panels + BLOCK * p.wide, *query_slopes = out_panels + BLOCK * p.wide;
  float *scores = query_slopes + BLOCK * p.wide, *slopes = scores + BLOCK * p.reach;
  clear(key_slopes, 2 * p.length * p.wide);
  for (int64_t place = 0; place < p.length; place++) {
    turned(s, p, key_of(s, p, s.key, place), place, 1.0f, turned_keys + place * p.size);
    spread(turned_keys + place * p.size, p.size, next, key_rows + place * PANEL);
  }
  stand(turned_keys, p.size, p.length, p.size, keys);
  stand(key_of(s, p, s.value, 0), s.kv_heads * p.size, p.length, p.size, values);
  for (int64_t head = 0; head < p.group; head++) {
    for (int64_t place = 0; place < p.length; place += BLOCK) {
      const int64_t rows = p.length - place < BLOCK ? p.length - place : BLOCK;
      const int64_t low = first_seen(s, place) / PANEL * PANEL, high = place + rows, begin = query_place(s, p, head, place);
      for (int64_t row = 0; row < rows; row++) {
        float *query = queries + row * p.size;
        turned(s, p, s.query + begin + row * stride, place + row, p.scale, query);
        spread(query, p.size, BLOCK * PANEL, query_panels + row * PANEL);
        spread(to.out + begin + row * stride, p.size, BLOCK * PANEL, out_panels + row * PANEL);
      }
      score(p, queries, p.size, place, rows, low, keys, scores);
      score(p, to.out + begin, stride, place, rows, low, values, slopes);
      for (int64_t row = 0; row < rows; row++) {
        const float mass = from.masses[(p.first + place + row) * s.heads + p.shared * p.group + head];
        const float common = dot(to.out + begin + row * stride, from.out + begin + row * stride, p.size);
        soften(s, place + row, low, high, mass, common, scores + row * p.reach, slopes + row * p.reach);
      }
      multiply<false, false>(slopes + low, p.reach, rows, key_rows + low * PANEL, next, panels, high - low, query_slopes, p.wide);
      multiply<true, true>(slopes + low, p.reach, high - low, query_panels, BLOCK * PANEL, panels, rows,
                     key_slopes + low * p.wide, p.wide);
      multiply<true, true>(scores + low, p.reach, high - low, out_panels, BLOCK * PANEL, panels, rows,
                     value_slopes + low * p.wide, p.wide);
      for (int64_t row = 0; row < rows; row++)
        turn_back(s, p, query_slopes + row * p.wide, place + row, p.scale, to.query + begin + row * stride);
    }
  }
  for (int64_t place = 0; place < p.length; place++) {
    const int64_t own = ((p.first + place) * s.kv_heads + p.shared) * p.size;
    turn_back(s, p, key_slopes + place * p.wide, place, 1.0f, to.key + own);
    for (int64_t i = 0; i < p.size; i++) to.value[own + i] = value_slopes[place * p.wide + i];
  }
}

void log_probs(const float *logits, int64_t width, float scale, const int64_t *targets, float *log_probs, float *entropies,
               float *masses, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    const float *from = logits + row * width, most = largest(from, width);
    double sum = 0.0, weighted = 0.0;
    for (int64_t start = 0; start < width; start += SUM_BLOCK) {
      const int64_t stop = width - start < SUM_BLOCK ? width : start + SUM_BLOCK;
      lanes sums = {}, shares = {};
      int64_t i = start;
      for (; i + LANES <= stop; i += LANES) {
        const lanes below = (load(from + i) - most) * scale, power = probability(below);
        sums += power;
        shares += power * (below < -87.0f ? lanes{} : below);
      }
      sum += total(sums);
      weighted += total(shares);
      for (; i < stop; i++) {
        const float below = (from[i] - most) * scale, power = probability(lanes{} + below)[0];
        sum += power;
        weighted += power * (below < -87.0f ? 0.0f : below);
      }
    }
    const double mass = __builtin_log(sum);
    log_probs[row] = static_cast<float>((from[targets[row]] - most) * scale - mass);
    entropies[row] = static_cast<float>(mass - weighted / sum);
    masses[row] = static_cast<float>(most * scale + mass);
  }
}

void log_probs_backward(const float *logits, int64_t width, float scale, const int64_t *targets, const float *masses,
                        const float *log_prob_gradients, float *logit_gradients, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    const float *from = logits + row * width, slope = log_prob_gradients[row] * scale, mass = masses[row];
    float *to = logit_gradients + row * width;
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) save(to + i, probability(load(from + i) * scale - mass) * -slope);
    for (; i < width; i++) to[i] = probability(lanes{} + (from[i] * scale - mass))[0] * -slope;
    to[targets[row]] += slope;
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

const Training SADDLE_SET(training) = {rms_norm,        rms_norm_backward, swiglu,    swiglu_backward,    sequences_scratch,
                                       attend,          attend_backward,   log_probs, log_probs_backward, adamw};

}  // namespace saddle
