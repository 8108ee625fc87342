// Causal long convolution by FFT, with gates and skip fused.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "../common/macros.h"

namespace hyenarec {

// out[b, t, d] = post_gate[b, t, d] (sum_{lag <= t} kernel[d, lag] z[b, t - lag, d] + skip[d] z[b, t, d]),
// z = pre_gate u. Zero padded, so never circular.
//
// u          [B, L, D], float32, float64, bfloat16, or (CUDA) float16; any strides; B, L, D may be 0
// kernel     [D, K]; lags >= L are ignored, missing lags are zero. float64 if u is float64, else float32
// skip       [D], dtype of kernel; nullopt: no skip term
// pre_gate   like u in shape and dtype; nullopt: ones
// post_gate  like u in shape and dtype; nullopt: ones
// All on one device. Returns [B, L, D], contiguous, dtype of u; 16-bit inputs are accumulated in float32.
// Differentiable in every tensor (once). Throws c10::Error naming the argument that is wrong.
HYENAREC_API at::Tensor fft_conv(
    const at::Tensor& u,
    const at::Tensor& kernel,
    const std::optional<at::Tensor>& skip = std::nullopt,
    const std::optional<at::Tensor>& pre_gate = std::nullopt,
    const std::optional<at::Tensor>& post_gate = std::nullopt);

// Gradients of fft_conv from grad (like u in shape and dtype, any strides): {u, kernel, skip, pre_gate,
// post_gate}, contiguous, each with its input's shape and dtype. needs_grad selects them in that order; one
// that is not selected, or whose argument is absent, comes back as an empty tensor of shape [0] in its
// would-be dtype (u's for u and gates, kernel's for kernel and skip). Not differentiable: a second derivative
// raises.
HYENAREC_API std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> fft_conv_backward(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& kernel,
    const std::optional<at::Tensor>& skip,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate,
    std::array<bool, 5> needs_grad);

namespace detail {

// Every backend kernel (CPU, CUDA, Meta) calls these first, so that checks also run under inference_mode.
void check_fft_conv_arguments(
    const at::Tensor& u,
    const at::Tensor& kernel,
    const std::optional<at::Tensor>& skip,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate);
void check_fft_conv_backward_arguments(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& kernel,
    const std::optional<at::Tensor>& skip,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate);

}  // namespace detail
}  // namespace hyenarec
