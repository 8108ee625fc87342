// Convolution kernels made of Legendre polynomials with exponential decay.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include "../common/macros.h"

namespace hyenarec {

// kernel[d, lag] = exp(-decay[d] lag) sum_n coeffs[d, n] P_n(2 lag / (horizon - 1) - 1),  0 <= lag < length.
//
// coeffs  [D, N], float32 or float64; N >= 0 (degree N - 1), N > horizon is allowed
// decay   [D], same dtype and device as coeffs, per lag; finite and >= 0 (values are checked on the CPU only)
// horizon number of lags that [-1, 1] spans, >= 1; with horizon = 1 the only lag sits at -1
// length  number of lags to compute, 0 <= length <= horizon
// Returns [D, length], contiguous, dtype of coeffs. Computed in double whatever the dtype on the CPU; float32
// on CUDA has only the recurrence of P_n in double.
// Differentiable in coeffs and decay (once). Throws c10::Error naming the argument that is wrong.
HYENAREC_API at::Tensor legendre_kernel(
    const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon, c10::SymInt length);

}  // namespace hyenarec
