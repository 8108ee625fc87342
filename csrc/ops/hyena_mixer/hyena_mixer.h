// The whole mixer of a Hyena block between its two projections, in one pass over memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>

#include "../common/macros.h"

namespace hyenarec {

// q, k, v = short_conv(x, short_weight, short_bias, offsets), D channels each, side by side in this order;
// out = legendre_conv(v, coeffs, decay, horizon, skip, pre_gate = k, post_gate = q, offsets): out[t, d] =
// q[t, d] (sum_{lag <= t} kernel[d, lag] z[t - lag, d] + skip[d] z[t, d]) within each sequence, z = k v. With
// 16-bit x the short convolution's results are not rounded to 16 bits.
//
// x             [B, L, 3D], L <= horizon; or packed [total, 3D] with offsets. float32, float64, bfloat16, or
//               (CUDA) float16; any strides; B, L, total, D may be 0
// short_weight  [3D, W], 1 <= W <= 8; short_weight[:, 0] meets the current event. float64 if x is float64,
//               else float32, like all parameters
// short_bias    [3D]; nullopt: none
// coeffs        [D, N]; decay [D]; horizon; skip [D]: see legendre_conv.h
// offsets       [S + 1], int64: see legendre_conv.h. Any order is right; on a GPU the longest sequences
//               first is fastest
// All on one device. Returns [B, L, D] or [total, D], contiguous, dtype of x; 16-bit inputs are accumulated
// in float32. Differentiable in every tensor but offsets (once). Throws c10::Error naming the argument that
// is wrong.
HYENAREC_API at::Tensor hyena_mixer(
    const at::Tensor& x, const at::Tensor& short_weight, const std::optional<at::Tensor>& short_bias,
    const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon, const at::Tensor& skip,
    const std::optional<at::Tensor>& offsets = std::nullopt);

}  // namespace hyenarec
