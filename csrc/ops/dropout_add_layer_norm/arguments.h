// The arguments of dropout_add_layer_norm, the operators behind it, and the checks of both.
#pragma once

#include "../common/operators.h"
#include "dropout_add_layer_norm.h"

namespace hyenarec {

struct DropoutAddLayerNormArguments {
  const at::Tensor& branch;
  const OptionalTensor& residual;
  const at::Tensor &weight, &bias;
  double p, eps;
  const OptionalTensor& seed;

  auto each() const { return std::tie(branch, residual, weight, bias, p, eps, seed); }
  void check() const;
};

struct DropoutAddLayerNormBackwardArguments {
  const OptionalTensor &grad_normed, &grad_sum;
  const at::Tensor &sum, &mean, &rstd, &weight;
  double p;
  const OptionalTensor& seed;
  at::ScalarType branch_dtype;
  std::array<bool, 4> needs_grad;

  auto each() const {
    return std::tie(grad_normed, grad_sum, sum, mean, rstd, weight, p, seed, branch_dtype, needs_grad);
  }
  void check() const;
};

// dropout_add_layer_norm with what its backward pass keeps of each row, the mean and 1 / sqrt(variance +
// eps): {normed, sum, mean [..], rstd [..]}, the last two in float64 if the sum is, else float32. Not
// differentiable.
constexpr auto dropout_add_layer_norm_with_statistics =
    detail::dispatch<"dropout_add_layer_norm_with_statistics", Tensors<4>, DropoutAddLayerNormArguments>;

namespace detail {

// Gradients of dropout_add_layer_norm from those of normed and sum (like sum in shape and dtype, any strides;
// nullopt: zeros): {branch [.., D] in branch_dtype, residual [.., D] like sum, weight [D], bias [D]},
// contiguous. Which elements were zero is drawn once more. needs_grad selects them in that order; one that is
// not selected comes back as an empty tensor of shape [0] in its would-be dtype. Not differentiable: a second
// derivative raises. (Outside of detail, a CUDA kernel has this name.)
constexpr auto dropout_add_layer_norm_backward =
    dispatch<"dropout_add_layer_norm_backward", Tensors<4>, DropoutAddLayerNormBackwardArguments>;

// The type of sum and normed.
at::ScalarType type_of_sum(const at::Tensor& branch, const OptionalTensor& residual);

}  // namespace detail
}  // namespace hyenarec
