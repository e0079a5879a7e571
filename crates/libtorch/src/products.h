// Products of an input with weights, which record gradients, and where gradients of weights are added up.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace saddle {

// What input, weights and gradients are turned into before they are multiplied.
enum class Factors : int {
  whole = 0,    // float32
  rounded = 1,  // numbers of bfloat16, as float32
  narrow = 2,   // bfloat16
};

// input · weightᵀ for each of `weights`, `[.., outputs]` in float32, from `input` `[.., inputs]` in float32 and weights `[outputs,
// inputs]`; one that has no gradient may be kept as bfloat16. What a backward pass needs is kept once for all of them, and a
// weight as it is, unless it is multiplied as bfloat16.
std::vector<at::Tensor> products(const at::Tensor &input, const std::vector<at::Tensor> &weights, Factors factors);

// Adds d loss / d leaf to each leaf's tensor of `sums`, which has its shape, as soon as it is known.
void add_gradients(const at::Tensor &loss, const std::vector<at::Tensor> &leaves, const std::vector<at::Tensor> &sums);

}  // namespace saddle
