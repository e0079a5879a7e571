// Products with weights that are kept as bfloat16 and not trained.
#pragma once

#include <ATen/core/Tensor.h>

namespace saddle {

// input · weightᵀ, `[.., outputs]` in float32, from `input` `[.., inputs]` in float32 and `weight` `[outputs, inputs]` in
// bfloat16. `narrow`: multiplied as bfloat16, the input rounded to it; else as float32, the weight widened for a moment.
// For a backward pass the weight itself is kept, and nothing else.
at::Tensor frozen_linear(const at::Tensor &input, const at::Tensor &weight, bool narrow);

}  // namespace saddle
