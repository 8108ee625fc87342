// Causal long convolution by FFT, with gates and skip fused.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

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
    const at::Tensor& u, const at::Tensor& kernel, const std::optional<at::Tensor>& skip = std::nullopt,
    const std::optional<at::Tensor>& pre_gate = std::nullopt,
    const std::optional<at::Tensor>& post_gate = std::nullopt);

}  // namespace hyenarec
