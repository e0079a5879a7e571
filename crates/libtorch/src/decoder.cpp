#include "decoder.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <memory>

#include "dispatch.h"

namespace saddle {
namespace {

// A layer is worth a further thread for so many multiplications: its threads meet ten times.
constexpr int64_t LAYER_GRAIN = 4 * GRAIN;
// Pairs of a token and a key-value head that a thread takes at a time.
constexpr int64_t DEAL = 8;

// With few rows a product takes as long as reading its weights: as long as four rows' multiplications.
int64_t rows_worth(int64_t rows) { return std::max<int64_t>(rows, 4); }

int64_t panels_of(const Product &product) {
  const int64_t panel = kernels().decoding.panel;
  return (product.outputs + panel - 1) / panel;
}

const Kept &kept(bool bf16) { return bf16 ? kernels().decoding.bf16 : kernels().decoding.f32; }

int64_t words_of(int64_t depth, bool bf16) { return bf16 ? (depth + 1) / 2 : depth; }

// Panels [begin, end) of all the products, counted through.
void multiply_panels(const Product *products, int64_t count, const void *input, int64_t rows, int64_t depth, bool bf16,
                     int64_t begin, int64_t end) {
  for (int64_t index = 0; index < count; index++) {
    const int64_t here = panels_of(products[index]);
    if (begin < std::min(here, end)) {
      kept(bf16).linear(products[index], input, rows, words_of(depth, bf16), begin, std::min(here, end));
    }
    begin = std::max<int64_t>(begin - here, 0), end -= here;
  }
}

std::unique_ptr<float[]> floats(int64_t count) { return std::unique_ptr<float[]>(new float[count]); }

std::unique_ptr<char[]> pairs_for(int64_t rows, int64_t depth) {
  return std::unique_ptr<char[]>(new char[rows * words_of(depth, true) * kernels().decoding.pair_bytes]);
}

// One of the threads that run a pass together.
class Member {
 public:
  Member() : index(omp_get_thread_num()), count(omp_get_num_threads()) {}

  // Calls body(begin, end) for this thread's part of `items`, when all threads are done with what came before.
  template <typename Body>
  void share(int64_t items, Body body) const {
    meet();
    const int64_t begin = items * index / count, end = items * (index + 1) / count;
    if (begin < end) body(begin, end);
  }

  // The same, for items that cost unequally: a thread that is done with some takes more.
  template <typename Body>
  void deal(int64_t items, Body body) const {
    meet();
#pragma omp for schedule(dynamic) nowait
    for (int64_t begin = 0; begin < items; begin += DEAL) body(begin, std::min(begin + DEAL, items));
  }

  const int index;

 private:
  void meet() const {
    if (count > 1) {
#pragma omp barrier
    }
  }

  const int count;
};

class Pass {
 public:
  Pass(const Decoder &decoder, const Tokens &tokens, int threads)
      : decoder(decoder),
        tokens(tokens),
        queries(decoder.heads * decoder.head_size),
        scratch_size(kernels().decoding.attention_scratch(tokens.longest, decoder.head_size)),
        normed(floats(tokens.count * decoder.width)),
        query(floats(tokens.count * queries)),
        key(floats(tokens.count * decoder.kv_heads * decoder.head_size)),
        value(floats(tokens.count * decoder.kv_heads * decoder.head_size)),
        mixed(floats(tokens.count * queries)),
        gate(floats(tokens.count * decoder.inner)),
        up(floats(tokens.count * decoder.inner)),
        added(floats(tokens.count * decoder.width)),
        scratch(floats(threads * scratch_size)),
        pairs(decoder.bf16_weights ? pairs_for(tokens.count, std::max({decoder.width, queries, decoder.inner})) : nullptr) {}

  // What each thread runs.
  void run() const {
    const Member member;
    float *hidden = tokens.hidden;
    int64_t rows = tokens.count;
    for (int64_t index = 0; index < decoder.count; index++) {
      const Block &block = decoder.blocks[index];
      enter(member, block.attention_norm, hidden, rows, index > 0);
      multiply(member, normed.get(), rows, decoder.width,
               {{block.query, query.get()}, {block.key, key.get()}, {block.value, value.get()}});
      attend(member, block);
      const float *attended = mixed.get();
      if (index + 1 == decoder.count && tokens.wanted != nullptr) {
        // Nothing reads the others from here on.
        rows = tokens.wanted_count;
        member.share(rows, [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; row++) {
            copy(hidden, tokens.wanted[row], decoder.width, tokens.out, row);
            copy(mixed.get(), tokens.wanted[row], queries, query.get(), row);
          }
        });
        hidden = tokens.out, attended = query.get();
      }
      if (decoder.bf16_weights) {
        member.share(rows, [&](int64_t begin, int64_t end) { round(attended, queries, begin, end); });
      }
      multiply(member, attended, rows, queries, {{block.output, added.get()}});
      enter(member, block.feed_forward_norm, hidden, rows, true);
      feed_forward(member, block, rows);
    }
    member.share(rows, [&](int64_t begin, int64_t end) {
      add(hidden, begin, end);
      norm(decoder.norm, hidden, decoder.width, tokens.out, begin, end);
    });
  }

 private:
  struct Output {
    const Matrix &matrix;
    float *out;
  };

  // Norms the hidden states for the products that come next, and before that adds what the last ones gave.
  void enter(const Member &member, const Norm &before, float *hidden, int64_t rows, bool added_to) const {
    member.share(rows, [&](int64_t begin, int64_t end) {
      if (added_to) add(hidden, begin, end);
      norm(before, hidden, decoder.width, normed.get(), begin, end);
      round(normed.get(), decoder.width, begin, end);
    });
  }

  void attend(const Member &member, const Block &block) const {
    const Kept &cache = kept(decoder.bf16_cache);
    const Attention attention{query.get(),       key.get(),       value.get(),       block.keys,       block.values,
                              tokens.rows,       tokens.positions, decoder.cosine,    decoder.sine,     mixed.get(),
                              decoder.heads,     decoder.kv_heads, decoder.head_size, decoder.capacity, decoder.window};
    member.share(tokens.count, [&](int64_t begin, int64_t end) {
      const auto norm_heads = [&](const Norm &each, float *heads, int64_t count) {
        if (each.weight != nullptr) norm(each, heads, decoder.head_size, heads, begin * count, end * count);
      };
      norm_heads(block.query_norm, query.get(), decoder.heads);
      norm_heads(block.key_norm, key.get(), decoder.kv_heads);
      cache.store(attention, begin, end);
    });
    float *own = scratch.get() + member.index * scratch_size;
    member.deal(tokens.count * decoder.kv_heads,
                [&](int64_t begin, int64_t end) { cache.attend(attention, own, begin, end); });
  }

  void feed_forward(const Member &member, const Block &block, int64_t rows) const {
    const bool gated = block.gate.weight != nullptr;
    if (gated) {
      multiply(member, normed.get(), rows, decoder.width, {{block.gate, gate.get()}, {block.up, up.get()}});
    } else {
      multiply(member, normed.get(), rows, decoder.width, {{block.up, up.get()}});
    }
    member.share(rows, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * decoder.inner, last = end * decoder.inner;
      if (gated) {
        kernels().training.swiglu(gate.get(), up.get(), up.get(), first, last);
      } else {
        kernels().decoding.gelu(up.get(), first, last);
      }
      round(up.get(), decoder.inner, begin, end);
    });
    multiply(member, up.get(), rows, decoder.inner, {{block.down, added.get()}});
  }

  // Of bf16 weights the input is what `round` made of it.
  void multiply(const Member &member, const float *input, int64_t rows, int64_t depth,
                std::initializer_list<Output> outputs) const {
    Product products[3];
    int64_t count = 0, panels = 0;
    for (const Output &each : outputs) {
      products[count] = {each.matrix.weight, each.matrix.bias, each.out, each.matrix.outputs};
      panels += panels_of(products[count++]);
    }
    const void *from = decoder.bf16_weights ? static_cast<const void *>(pairs.get()) : input;
    member.share(panels, [&](int64_t begin, int64_t end) {
      multiply_panels(products, count, from, rows, depth, decoder.bf16_weights, begin, end);
    });
  }

  void round(const float *input, int64_t width, int64_t begin, int64_t end) const {
    if (decoder.bf16_weights) kernels().decoding.pair(input, width, pairs.get(), begin, end);
  }

  void add(float *hidden, int64_t begin, int64_t end) const {
    kernels().decoding.add(added.get(), hidden, begin * decoder.width, end * decoder.width);
  }

  static void norm(const Norm &norm, const float *input, int64_t width, float *out, int64_t begin, int64_t end) {
    if (norm.bias == nullptr) {
      kernels().training.rms_norm(input, norm.weight, norm.epsilon, width, out, begin, end);
    } else {
      kernels().decoding.layer_norm(input, norm.weight, norm.bias, norm.epsilon, width, out, begin, end);
    }
  }

  static void copy(const float *from, int64_t row, int64_t width, float *to, int64_t place) {
    std::memcpy(to + place * width, from + row * width, width * sizeof(float));
  }

  const Decoder &decoder;
  const Tokens &tokens;
  const int64_t queries;  // width of a token's queries
  const int64_t scratch_size;
  const std::unique_ptr<float[]> normed, query, key, value, mixed, gate, up;
  const std::unique_ptr<float[]> added;  // what the next norm adds to the hidden states first
  const std::unique_ptr<float[]> scratch;
  const std::unique_ptr<char[]> pairs;  // what enters a product, rounded
};

}  // namespace

void linear(const Product *products, int64_t count, const float *input, int64_t rows, int64_t depth, bool bf16) {
  const Decoding &each = kernels().decoding;
  const void *numbers = input;
  std::unique_ptr<char[]> pairs;
  if (bf16) {
    pairs = pairs_for(rows, depth);
    share_out(rows, depth, [&](int64_t begin, int64_t end) { each.pair(input, depth, pairs.get(), begin, end); });
    numbers = pairs.get();
  }
  int64_t panels = 0;
  for (int64_t index = 0; index < count; index++) panels += panels_of(products[index]);
  share_out(panels, words_of(depth, bf16) * each.panel * rows_worth(rows), [&](int64_t begin, int64_t end) {
    multiply_panels(products, count, numbers, rows, depth, bf16, begin, end);
  });
}

void forward(const Decoder &decoder, const Tokens &tokens) {
  const int64_t queries = decoder.heads * decoder.head_size, shared = decoder.kv_heads * decoder.head_size;
  const int64_t weights = decoder.width * (2 * queries + 2 * shared + 3 * decoder.inner);
  const int64_t worth = rows_worth(tokens.count) * weights / LAYER_GRAIN + 1;
  const int threads = static_cast<int>(std::min<int64_t>(at::get_num_threads(), worth));
  const Pass pass(decoder, tokens, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  pass.run();
}

}  // namespace saddle
