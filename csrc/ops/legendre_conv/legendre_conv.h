// Causal long convolution with Legendre kernels in linear time, with gates and skip fused, padded or packed.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>

#include "../common/macros.h"

namespace hyenarec {

// out[t, d] = post_gate[t, d] (sum_{lag <= t} kernel[d, lag] z[t - lag, d] + skip[d] z[t, d]) within each
// sequence, z = pre_gate u, kernel[d, lag] = exp(-decay[d] lag) sum_n coeffs[d, n] P_n(2 lag / (horizon - 1)
// - 1): what fft_conv(u, legendre_kernel(coeffs, decay, horizon, L), ...) computes, by the scan that
// docs/scan.md describes.
//
// u          [B, L, D], L <= horizon; or packed [total, D] with offsets. float32, float64, bfloat16, or
//            (CUDA) float16; any strides; B, L, total, D may be 0
// coeffs     [D, N]; N >= 0 (degree N - 1), N > horizon is allowed. float64 if u is float64, else float32
// decay      [D], dtype of coeffs, per lag; finite and >= 0 (values are checked on the CPU only)
// horizon    number of lags that [-1, 1] spans, >= 1; with horizon = 1 the only lag sits at -1
// skip       [D], dtype of coeffs; nullopt: no skip term
// pre_gate   like u in shape and dtype; nullopt: ones
// post_gate  like u in shape and dtype; nullopt: ones
// offsets    [S + 1], int64; sequence s is u[offsets[s] : offsets[s + 1]], of at most `horizon` events,
//            offsets[0] = 0, offsets[S] = total, non-decreasing (values are checked on the CPU only). Empty
//            sequences are fine. Any order of the sequences is right; on a GPU the longest first is fastest
// All on one device. Returns a contiguous tensor like u; 16-bit inputs are accumulated in float32.
// Differentiable in every tensor but offsets (once). Throws c10::Error naming the argument that is wrong.
HYENAREC_API at::Tensor legendre_conv(
    const at::Tensor& u, const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon,
    const std::optional<at::Tensor>& skip = std::nullopt,
    const std::optional<at::Tensor>& pre_gate = std::nullopt,
    const std::optional<at::Tensor>& post_gate = std::nullopt,
    const std::optional<at::Tensor>& offsets = std::nullopt);

}  // namespace hyenarec
