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

#include "decoder.h"
#include "dispatch.h"
#include "layers.h"
#include "products.h"

// Of the MKL that some builds of libtorch contain.
extern "C" int MKL_Set_Num_Threads_Local(int threads) __attribute__((weak));
extern "C" int MKL_Get_Max_Threads() __attribute__((weak));

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

const at::Tensor &tensor(const void *pointer) { return *static_cast<const at::Tensor *>(pointer); }

std::vector<at::Tensor> tensors(const void *const *pointers, int64_t count) {
  std::vector<at::Tensor> all;
  for (int64_t index = 0; index < count; index++) all.push_back(tensor(pointers[index]));
  return all;
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
    // A thread's first parallel work gives it the count that any thread set last: its first in libtorch, and, by an inline
    // function, its first in this program. Both are made to happen now, so that the count set here stays.
    at::get_num_threads();
    at::internal::lazy_init_num_threads();
    at::set_num_threads(threads);
    // MKL's own count, which libtorch sets for all threads at once.
    if (MKL_Set_Num_Threads_Local != nullptr) MKL_Set_Num_Threads_Local(threads);
  });
}

char *saddle_threads(int *threads) {
  return guarded([&] {
    *threads = at::get_num_threads();
    if (MKL_Get_Max_Threads != nullptr) *threads = std::min(*threads, MKL_Get_Max_Threads());
  });
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

char *saddle_products(const void *input, const void *const *weights, int64_t count, int factors, void **products) {
  return guarded([&] {
    const auto all = saddle::products(tensor(input), tensors(weights, count), static_cast<saddle::Factors>(factors));
    for (int64_t index = 0; index < count; index++) products[index] = new at::Tensor(all[index]);
  });
}

char *saddle_add_gradients(const void *loss, const void *const *leaves, const void *const *sums, int64_t count) {
  return guarded([&] { saddle::add_gradients(tensor(loss), tensors(leaves, count), tensors(sums, count)); });
}

bool saddle_bf16_units() {
#ifdef __x86_64__
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

int64_t saddle_panel() { return saddle::kernels().decoding.panel; }

char *saddle_linear(const saddle::Product *products, int64_t count, const float *input, int64_t rows, int64_t depth,
                    bool bf16) {
  return guarded([&] { saddle::linear(products, count, input, rows, depth, bf16); });
}

char *saddle_forward(const saddle::Decoder *decoder, const saddle::Tokens *tokens) {
  return guarded([&] { saddle::forward(*decoder, *tokens); });
}

char *saddle_rms_norm(const void *input, const void *weight, double epsilon, void **out) {
  return guarded([&] { *out = new at::Tensor(saddle::rms_norm(tensor(input), tensor(weight), epsilon)); });
}

char *saddle_swiglu(const void *gate, const void *up, void **out) {
  return guarded([&] { *out = new at::Tensor(saddle::swiglu(tensor(gate), tensor(up))); });
}

char *saddle_sequence_attention(const void *query, const void *key, const void *value, const void *starts,
                                const void *cosine, const void *sine, int64_t head_size, int64_t window, void **out) {
  return guarded([&] {
    const auto table = [](const void *pointer) { return pointer ? saddle::Table(tensor(pointer)) : std::nullopt; };
    *out = new at::Tensor(saddle::sequence_attention(tensor(query), tensor(key), tensor(value), tensor(starts),
                                                     table(cosine), table(sine), head_size, window));
  });
}

char *saddle_log_probs(const void *logits, const void *targets, double temperature, void **log_probs, void **entropies) {
  return guarded([&] {
    const auto both = saddle::log_probs(tensor(logits), tensor(targets), temperature);
    *log_probs = new at::Tensor(both[0]);
    *entropies = new at::Tensor(both[1]);
  });
}

char *saddle_choose(const float *logits, int64_t rows, int64_t width, double temperature, const double *uniforms,
                    int64_t *tokens, float *log_probs) {
  return guarded([&] {
    saddle::share_out(rows, 16 * width, [&](int64_t begin, int64_t end) {
      std::vector<double> masses(width);
      saddle::kernels().decoding.choose(logits, width, temperature, uniforms, masses.data(), tokens, log_probs, begin, end);
    });
  });
}

char *saddle_adamw(const saddle::Step *step, float *weights, float *gradient, float *means, float *squares,
                   int64_t count) {
  return guarded([&] {
    saddle::share_out(count, 64, [&](int64_t begin, int64_t end) {
      saddle::kernels().training.adamw(*step, weights, gradient, means, squares, begin, end);
    });
  });
}

}  // extern "C"
