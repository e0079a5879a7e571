// The contract is in frozen.h. libtorch's own product wants input and weight of one kind, and keeps both for its backward
// pass: of a weight that is widened on the way that would be a copy of the model.

#include "frozen.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace saddle {
namespace {

// left · right with the frozen `right` as it is, or left as it is; float32 again.
at::Tensor product(const at::Tensor &left, const at::Tensor &right, bool narrow) {
  if (narrow) return at::matmul(left.to(at::kBFloat16), right).to(at::kFloat);
  return at::matmul(left, right.to(at::kFloat));
}

struct Product : torch::autograd::Function<Product> {
  static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &input,
                            const at::Tensor &weight, bool narrow) {
    context->save_for_backward({weight});
    context->saved_data["narrow"] = narrow;
    return product(input, weight.t(), narrow);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients) {
    const at::Tensor weight = context->get_saved_variables()[0];
    return {product(gradients[0], weight, context->saved_data["narrow"].toBool()), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor frozen_linear(const at::Tensor &input, const at::Tensor &weight, bool narrow) {
  TORCH_CHECK(input.scalar_type() == at::kFloat && weight.scalar_type() == at::kBFloat16 && weight.dim() == 2,
              "a frozen product wants a float32 input and a bfloat16 matrix, not ", input.scalar_type(), " and ",
              weight.scalar_type(), " of ", weight.dim(), " dimensions");
  TORCH_CHECK(!weight.requires_grad(), "a weight that is trained is no frozen one");
  if (at::GradMode::is_enabled() && input.requires_grad()) return Product::apply(input, weight, narrow);
  return product(input, weight.t(), narrow);
}

}  // namespace saddle
