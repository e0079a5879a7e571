// What tch does not offer, for src/ffi.rs, which states the contract of each function.
//
// No exception crosses this border: every function returns null, or a message that the caller gives back to
// saddle_string_free. Strings handed out are the caller's in the same way.

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <caffe2/core/common.h>

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <vector>

#include "frozen.h"
#include "kernels.h"

namespace {

template <typename Body>
char *guarded(Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const c10::Error &error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception &error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception of unknown type");
  }
}

// The widest kernels that this CPU runs; SADDLE_KERNELS may name narrower ones, down to `baseline`.
const saddle::Kernels &widest_kernels() {
#ifdef __x86_64__
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const struct {
    const char *name;
    bool runs;
    const saddle::Kernels &kernels;
  } sets[] = {{"avx512bf16", avx512 && __builtin_cpu_supports("avx512bf16"), saddle::kernels_avx512bf16},
              {"avx512", avx512, saddle::kernels_avx512},
              {"avx2", avx2, saddle::kernels_avx2}};
  const char *widest = std::getenv("SADDLE_KERNELS");
  bool wanted = widest == nullptr;
  for (const auto &set : sets) {
    wanted = wanted || std::strcmp(set.name, widest) == 0;
    if (wanted && set.runs) return set.kernels;
  }
#endif
  return saddle::kernels_baseline;
}

const saddle::Kernels &kernels() {
  static const saddle::Kernels &chosen = widest_kernels();
  return chosen;
}

// A thread is worth waking for so many multiplications.
constexpr int64_t GRAIN = 1 << 19;

// Calls body(begin, end) on this thread's threads; each item costs about `multiplications`.
template <typename Body>
void share_out(int64_t items, int64_t multiplications, Body body) {
  at::parallel_for(0, items, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, multiplications)), body);
}

}  // namespace

extern "C" {

void saddle_string_free(char *string) { std::free(string); }

char *saddle_version(char **version) {
  // Not at::show_config(): it asks for CUDA, and whoever asks before the CUDA library is loaded hears "none" for ever.
  return guarded([&] { *version = strdup(caffe2::GetBuildOptions().at("TORCH_VERSION").c_str()); });
}

char *saddle_cpu_capability(char **capability) {
  return guarded([&] { *capability = strdup(at::get_cpu_capability().c_str()); });
}

char *saddle_libtorch_path(char **path) {
  return guarded([&] {
    Dl_info info{};
    if (dladdr(reinterpret_cast<void *>(&at::get_num_threads), &info) == 0 || info.dli_fname == nullptr) {
      throw std::runtime_error("the dynamic loader does not know where libtorch_cpu.so came from");
    }
    *path = strdup(info.dli_fname);
  });
}

char *saddle_load_library(const char *path) {
  return guarded([&] {
    // Never closed: a backend that has registered itself cannot be taken back.
    if (dlopen(path, RTLD_NOW | RTLD_GLOBAL) == nullptr) {
      throw std::runtime_error(dlerror());
    }
  });
}

char *saddle_cuda_devices(bool *registered, int *devices) {
  return guarded([&] {
    const at::CUDAHooksInterface &hooks = at::detail::getCUDAHooks();
    *registered = typeid(hooks) != typeid(at::CUDAHooksInterface);
    *devices = hooks.deviceCount();
  });
}

char *saddle_set_threads(int threads) {
  return guarded([&] {
    // libtorch initialises a thread at its first parallel work, and then gives it the count that any thread set last.
    // Asking for the count first makes that happen now, so that the count set here stays.
    at::get_num_threads();
    at::set_num_threads(threads);
  });
}

char *saddle_threads(int *threads) {
  return guarded([&] { *threads = at::get_num_threads(); });
}

char *saddle_use_deterministic_algorithms(bool enabled) {
  return guarded([&] {
    at::globalContext().setDeterministicAlgorithms(enabled, /*warn_only=*/false);
    // Would fill every fresh tensor to expose reads of uninitialised memory: a debugging aid, at the price of a pass.
    at::globalContext().setDeterministicFillUninitializedMemory(false);
  });
}

char *saddle_enter_stream(int device) {
  return guarded([&] {
    // The registry knows CUDA's once its library is loaded; nothing of it is linked.
    const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    const c10::Device cuda(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device));
    guard.exchangeStream(guard.getStreamFromGlobalPool(cuda));
  });
}

char *saddle_synchronize_stream(int device) {
  return guarded([&] {
    const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    guard.synchronizeStream(guard.getStream(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device))));
  });
}

char *saddle_synchronize_device(int device) {
  return guarded([&] {
    c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).synchronizeDevice(static_cast<c10::DeviceIndex>(device));
  });
}

char *saddle_frozen_linear(const void *input, const void *weight, bool narrow, void **product) {
  return guarded([&] {
    const auto tensor = [](const void *pointer) -> const at::Tensor & { return *static_cast<const at::Tensor *>(pointer); };
    *product = new at::Tensor(saddle::frozen_linear(tensor(input), tensor(weight), narrow));
  });
}

bool saddle_bf16_units() {
#ifdef __x86_64__
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

int64_t saddle_panel() { return kernels().panel; }

char *saddle_linear(const saddle::Product *products, int64_t count, const float *input, int64_t rows, int64_t depth,
                    bool bf16) {
  return guarded([&] {
    const saddle::Kernels &each = kernels();
    const auto panels = [&](const saddle::Product &product) { return (product.outputs + each.panel - 1) / each.panel; };
    const void *numbers = input;
    std::vector<uint32_t> words;
    if (bf16) {
      const int64_t width = depth;
      depth = (width + 1) / 2;
      words.resize(rows * depth);
      share_out(rows, width, [&](int64_t begin, int64_t end) { each.pair(input, width, words.data(), begin, end); });
      numbers = words.data();
    }
    int64_t all = 0;
    for (int64_t index = 0; index < count; index++) all += panels(products[index]);
    // With few rows the time is that of reading the weights: as long as that of four rows' multiplications.
    share_out(all, depth * each.panel * std::max<int64_t>(rows, 4), [&](int64_t begin, int64_t end) {
      for (int64_t index = 0; index < count; index++) {
        const int64_t here = panels(products[index]);
        if (begin < std::min(here, end)) {
          (bf16 ? each.linear_bf16 : each.linear_f32)(products[index], numbers, rows, depth, begin, std::min(here, end));
        }
        begin = std::max<int64_t>(begin - here, 0), end -= here;
      }
    });
  });
}

char *saddle_attend(const saddle::Attention *attention, int64_t tokens, int64_t longest) {
  return guarded([&] {
    const saddle::Kernels &each = kernels();
    const saddle::Attention &a = *attention;
    share_out(tokens, a.kv_heads * a.head_size * 8, [&](int64_t begin, int64_t end) { each.store(a, begin, end); });
    const int64_t group = a.heads / a.kv_heads;
    share_out(tokens * a.kv_heads, 4 * longest * group * a.head_size, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(longest + 2 * a.head_size);
      each.attend(a, scratch.data(), begin, end);
    });
  });
}

char *saddle_rms_norm(const float *input, const float *weight, double epsilon, int64_t rows, int64_t width,
                      float *out) {
  return guarded([&] {
    share_out(rows, 4 * width, [&](int64_t begin, int64_t end) {
      kernels().rms_norm(input, weight, epsilon, width, out, begin, end);
    });
  });
}

char *saddle_swiglu(const float *gate, const float *up, float *out, int64_t count) {
  return guarded([&] {
    share_out(count, 32, [&](int64_t begin, int64_t end) { kernels().swiglu(gate, up, out, begin, end); });
  });
}

char *saddle_choose(const float *logits, int64_t rows, int64_t width, double temperature, const double *uniforms,
                    int64_t *tokens, float *log_probs) {
  return guarded([&] {
    share_out(rows, 16 * width, [&](int64_t begin, int64_t end) {
      std::vector<double> masses(width);
      kernels().choose(logits, width, temperature, uniforms, masses.data(), tokens, log_probs, begin, end);
    });
  });
}

char *saddle_adamw(const saddle::Step *step, float *weights, float *gradient, float *means, float *squares,
                   int64_t count) {
  return guarded([&] {
    share_out(count, 64, [&](int64_t begin, int64_t end) {
      kernels().adamw(*step, weights, gradient, means, squares, begin, end);
    });
  });
}

}  // extern "C"
