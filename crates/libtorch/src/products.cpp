// The contract is in products.h.

#include "products.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace saddle {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

at::Tensor factor(const at::Tensor &tensor, Factors factors) {
  switch (factors) {
    case Factors::whole: return tensor.to(at::kFloat);
    case Factors::rounded: return tensor.to(at::kBFloat16).to(at::kFloat);
    case Factors::narrow: return tensor.to(at::kBFloat16);
  }
  TORCH_CHECK(false, "no such factors");
}

struct Products : Function<Products> {
  static variable_list forward(AutogradContext *context, const at::Tensor &input, at::TensorList weights, Factors factors) {
    const at::Tensor from = factor(input.reshape({-1, input.size(-1)}), factors);
    std::vector<int64_t> shape = input.sizes().vec();
    variable_list products, kept{from};
    for (const at::Tensor &weight : weights) {
      const at::Tensor by = factor(weight, factors);
      shape.back() = weight.size(0);
      products.push_back(at::mm(from, by.t()).to(at::kFloat).view(shape));
      kept.push_back(factors == Factors::narrow ? by : weight);
    }
    context->save_for_backward(kept);
    context->saved_data["factors"] = static_cast<int64_t>(factors);
    return products;
  }

  static variable_list backward(AutogradContext *context, variable_list gradients) {
    const auto factors = static_cast<Factors>(context->saved_data["factors"].toInt());
    const variable_list kept = context->get_saved_variables();
    const at::Tensor &from = kept[0];
    at::Tensor input_gradient;
    variable_list weight_gradients(gradients.size());
    std::vector<int64_t> shape = gradients[0].sizes().vec();
    shape.back() = from.size(1);
    for (size_t index = 0; index < gradients.size(); index++) {
      const at::Tensor slopes = factor(gradients[index].reshape({-1, gradients[index].size(-1)}), factors);
      if (context->needs_input_grad(0)) {
        const at::Tensor by = factor(kept[1 + index], factors);
        if (!input_gradient.defined()) {
          input_gradient = at::mm(slopes, by).to(at::kFloat);
        } else if (factors == Factors::narrow) {
          input_gradient.add_(at::mm(slopes, by));
        } else {
          input_gradient.addmm_(slopes, by);
        }
      }
      if (context->needs_input_grad(1 + index)) weight_gradients[index] = at::mm(slopes.t(), from).to(at::kFloat);
    }
    variable_list all{input_gradient.defined() ? input_gradient.view(shape) : input_gradient};
    all.insert(all.end(), weight_gradients.begin(), weight_gradients.end());
    all.emplace_back();
    return all;
  }
};

}  // namespace

std::vector<at::Tensor> products(const at::Tensor &input, const std::vector<at::Tensor> &weights, Factors factors) {
  TORCH_CHECK(input.scalar_type() == at::kFloat && input.dim() > 0, "a product wants an input in float32, not ",
              input.scalar_type(), " of ", input.dim(), " dimensions");
  TORCH_CHECK(!weights.empty(), "a product wants a weight");
  for (const at::Tensor &weight : weights) {
    const bool kind = weight.scalar_type() == at::kFloat || (weight.scalar_type() == at::kBFloat16 && !weight.requires_grad());
    TORCH_CHECK(kind && weight.dim() == 2, "a product wants a matrix in float32, or a frozen one in bfloat16, not ",
                weight.requires_grad() ? "a trained " : "a frozen ", weight.scalar_type(), " of ", weight.dim(), " dimensions");
    TORCH_CHECK(weight.size(1) == input.size(-1), "an input of ", input.size(-1), " numbers for a weight of ", weight.size(1));
  }
  return Products::apply(input, at::TensorList(weights), factors);
}

void add_gradients(const at::Tensor &loss, const std::vector<at::Tensor> &leaves, const std::vector<at::Tensor> &sums) {
  // A leaf's own gradient is added to in place; it is taken away again on every way out.
  struct Lent {
    const std::vector<at::Tensor> &leaves;
    ~Lent() {
      for (const at::Tensor &leaf : leaves) leaf.mutable_grad().reset();
    }
  } lent{leaves};
  for (size_t index = 0; index < leaves.size(); index++) leaves[index].mutable_grad() = sums[index];
  torch::autograd::backward({loss}, {}, /*retain_graph=*/false, /*create_graph=*/false, leaves);
}

}  // namespace saddle
