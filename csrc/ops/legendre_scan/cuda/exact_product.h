// Matrix products that must be as exact as their dtype.
#pragma once

#include <ATen/core/Tensor.h>

namespace hyenarec {

// a [M, K] times each of b [B, K, N] on CUDA: [B, M, N]. Both are float or both double, and no factor is
// rounded whatever the user allows in torch's own products: no TF32, no 16 bits under autocast.
at::Tensor exact_product(const at::Tensor& a, const at::Tensor& b);

}  // namespace hyenarec
