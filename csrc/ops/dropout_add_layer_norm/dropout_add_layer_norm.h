// Dropout of a residual branch, its sum with the residual stream, and the layer norm of that, in one pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "../common/macros.h"

namespace hyenarec {

// sum = residual + dropout(branch), normed = weight (sum - mean) / sqrt(variance + eps) + bias, with the mean and the
// biased variance of each row's D channels.
//
// branch    [.., D], D >= 1: float32, float64, bfloat16, or (CUDA) float16; any strides
// residual  [.., D], of any of these types; nullopt: zeros
// weight    [D], float64 if the sum is, else float32 or like the sum
// bias      [D], the same
// p         probability to be zero, in [0, 1], rounded to a multiple of 2^-16; what stays is divided by 1 - p
// eps       at least 0
// seed      [], int64, on branch's device: which elements are zero is a function of it, p and their index alone, on
//           every device (philox.h). Needed for p > 0
// Returns {normed, sum}, contiguous, in the type that branch and residual promote to (a bfloat16 branch beside a float32
// residual gives float32). Statistics are those of the sum as it is returned, in float32 for 16 bits.
// Differentiable in branch, residual, weight and bias (once). Throws c10::Error naming the argument that is wrong.
HYENAREC_API std::tuple<at::Tensor, at::Tensor> dropout_add_layer_norm(
    const at::Tensor& branch,
    const std::optional<at::Tensor>& residual,
    const at::Tensor& weight,
    const at::Tensor& bias,
    double p = 0,
    double eps = 1e-5,
    const std::optional<at::Tensor>& seed = std::nullopt);

// The same with what its backward pass keeps of each row, the mean and 1 / sqrt(variance + eps):
// {normed, sum, mean [..], rstd [..]}, the last two in float64 if the sum is, else float32. Not differentiable.
HYENAREC_API std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>
dropout_add_layer_norm_with_statistics(
    const at::Tensor& branch,
    const std::optional<at::Tensor>& residual,
    const at::Tensor& weight,
    const at::Tensor& bias,
    double p,
    double eps,
    const std::optional<at::Tensor>& seed);

// Gradients of dropout_add_layer_norm from those of normed and sum (like sum in shape and dtype, any strides; nullopt:
// zeros): {branch [.., D] in branch_dtype, residual [.., D] like sum, weight [D], bias [D]}, contiguous. Which elements
// were zero is drawn once more. needs_grad selects them in that order; one that is not selected comes back as an empty
// tensor of shape [0] in its would-be dtype. Not differentiable: a second derivative raises.
HYENAREC_API std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> dropout_add_layer_norm_backward(
    const std::optional<at::Tensor>& grad_normed,
    const std::optional<at::Tensor>& grad_sum,
    const at::Tensor& sum,
    const at::Tensor& mean,
    const at::Tensor& rstd,
    const at::Tensor& weight,
    double p,
    const std::optional<at::Tensor>& seed,
    at::ScalarType branch_dtype,
    std::array<bool, 4> needs_grad);

namespace detail {

// Every backend kernel (CPU, CUDA, Meta) calls these first, so that checks also run under inference_mode.
void check_dropout_add_layer_norm_arguments(
    const at::Tensor& branch,
    const std::optional<at::Tensor>& residual,
    const at::Tensor& weight,
    const at::Tensor& bias,
    double p,
    double eps,
    const std::optional<at::Tensor>& seed);
void check_dropout_add_layer_norm_backward_arguments(
    const std::optional<at::Tensor>& grad_normed,
    const std::optional<at::Tensor>& grad_sum,
    const at::Tensor& sum,
    const at::Tensor& mean,
    const at::Tensor& rstd,
    const at::Tensor& weight,
    double p,
    const std::optional<at::Tensor>& seed);

// The type of sum and normed.
at::ScalarType type_of_sum(const at::Tensor& branch, const std::optional<at::Tensor>& residual);

// The type in which the kernels read the branch, and write its gradient: 16 bits stay 16 bits beside a float32 sum, all
// else is converted to the sum's type.
at::ScalarType kernel_type_of_branch(at::ScalarType branch, at::ScalarType sum);

// What the kernels know of dropout: of 2^16 levels that an element may draw, so many lowest ones make it zero; the
// factor of the others.
struct DropoutLevels {
  uint32_t dropped;
  double scale;

  explicit DropoutLevels(double p);
};

}  // namespace detail
}  // namespace hyenarec
