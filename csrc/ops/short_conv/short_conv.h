// Depthwise causal FIR filter of a few taps, padded or packed.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../common/macros.h"

namespace hyenarec {

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
    const at::Tensor& u, const at::Tensor& weight, const std::optional<at::Tensor>& bias = std::nullopt,
    const std::optional<at::Tensor>& offsets = std::nullopt);

}  // namespace hyenarec
