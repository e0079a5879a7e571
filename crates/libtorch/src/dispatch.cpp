#include "dispatch.h"

#include <cstdlib>
#include <cstring>

namespace saddle {
namespace {

Kernels widest_kernels() {
#ifdef __x86_64__
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const struct {
    const char *name;
    bool runs;
    Kernels kernels;
  } sets[] = {
      {"avx512bf16", avx512 && __builtin_cpu_supports("avx512bf16"), {decoding_avx512bf16, training_avx512bf16}},
      {"avx512", avx512, {decoding_avx512, training_avx512}},
      {"avx2", avx2, {decoding_avx2, training_avx2}}};
  const char *widest = std::getenv("SADDLE_KERNELS");
  bool wanted = widest == nullptr;
  for (const auto &set : sets) {
    wanted = wanted || std::strcmp(set.name, widest) == 0;
    if (wanted && set.runs) return set.kernels;
  }
#endif
  return {decoding_baseline, training_baseline};
}

}  // namespace

const Kernels &kernels() {
  static const Kernels chosen = widest_kernels();
  return chosen;
}

}  // namespace saddle
