// Which kernels run, and on how many threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "kernels.h"

namespace saddle {

// The kernels of one instruction set.
struct Kernels {
  const Decoding &decoding;
  const Training &training;
};

// The widest that this CPU runs; the environment's SADDLE_KERNELS may name narrower ones, down to `baseline`.
const Kernels &kernels();

// A thread is worth waking for so many multiplications.
constexpr int64_t GRAIN = 1 << 19;

// Calls body(begin, end) on this thread's threads; each item costs about `multiplications`.
template <typename Body>
void share_out(int64_t items, int64_t multiplications, Body body) {
  at::parallel_for(0, items, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, multiplications)), body);
}

}  // namespace saddle
