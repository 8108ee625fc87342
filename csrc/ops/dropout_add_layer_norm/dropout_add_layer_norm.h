// Dropout of a residual branch, its sum with the residual stream, and the layer norm of that, in one pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "../common/macros.h"

namespace hyenarec {

// sum = residual + dropout(branch), normed = weight (sum - mean) / sqrt(variance + eps) + bias, with the mean
// and the biased variance of each row's D channels.
//
// branch    [.., D], D >= 1: float32, float64, bfloat16, or (CUDA) float16; any strides
// residual  [.., D], of any of these types; nullopt: zeros
// weight    [D], float64 if the sum is, else float32 or like the sum
// bias      [D], the same
// p         probability to be zero, in [0, 1], rounded to a multiple of 2^-16; what stays is divided by 1 - p
// eps       at least 0
// seed      [], int64, on branch's device: which elements are zero is a function of it, p and their index
//           alone, on every device. Needed for p > 0
// Returns {normed, sum}, contiguous, in the type that branch and residual promote to (a bfloat16 branch
// beside a float32 residual gives float32). Statistics are those of the sum as it is returned, in float32 for
// 16 bits.
// Differentiable in branch, residual, weight and bias (once). Throws c10::Error naming the argument that is
// wrong.
HYENAREC_API std::tuple<at::Tensor, at::Tensor> dropout_add_layer_norm(
    const at::Tensor& branch, const std::optional<at::Tensor>& residual, const at::Tensor& weight,
    const at::Tensor& bias, double p = 0, double eps = 1e-5,
    const std::optional<at::Tensor>& seed = std::nullopt);

}  // namespace hyenarec
