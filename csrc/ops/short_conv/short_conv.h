// Depthwise causal FIR filter of a few taps, padded or packed.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "../common/macros.h"

namespace hyenarec {

constexpr int64_t kShortConvMaxWidth = 8;

// out[.., t, d] = bias[d] + sum_{w = 0}^{W-1} weight[d, w] u[.., t - w, d]: weight[:, 0] meets the current
// event. Events before the start of a sequence are zero; a packed boundary is such a start.
//
// u        [B, L, D]; or packed [total, D] with offsets. float32, float64, bfloat16, or (CUDA) float16;
//          any strides
// weight   [D, W], 1 <= W <= 8; float64 if u is float64, else float32
// bias     [D], dtype of weight; nullopt: none
// offsets  [S + 1], int64, on u's device; sequence s is u[offsets[s] : offsets[s + 1]], offsets[0] = 0,
//          offsets[S] = total, non-decreasing (values are checked on the CPU only). Empty sequences are fine
// Returns a contiguous tensor like u; 16-bit inputs are accumulated in float32.
// Differentiable in u, weight and bias (once). Throws c10::Error naming the argument that is wrong.
HYENAREC_API at::Tensor short_conv(
    const at::Tensor& u,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& bias = std::nullopt,
    const std::optional<at::Tensor>& offsets = std::nullopt);

// Gradients of short_conv from grad (like u in shape and dtype, any strides): {u, weight [D, W], bias [D]},
// contiguous. needs_grad selects them in that order; one that is not selected comes back as an empty tensor of
// shape [0] in its would-be dtype (u's for u, weight's for weight and bias).
// Not differentiable: a second derivative raises.
HYENAREC_API std::tuple<at::Tensor, at::Tensor, at::Tensor> short_conv_backward(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& offsets,
    std::array<bool, 3> needs_grad);

namespace detail {

// Every backend kernel (CPU, CUDA, Meta) calls these first, so that checks also run under inference_mode.
void check_short_conv_arguments(
    const at::Tensor& u,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& offsets);
void check_short_conv_backward_arguments(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& offsets);

}  // namespace detail
}  // namespace hyenarec
