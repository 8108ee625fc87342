// Matrix products that must be as exact as their dtype.
#pragma once

#include <ATen/Context.h>
#include <ATen/ops/bmm.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace hyenarec {

// torch heeds NoTF32Guard where it takes a handle of cuBLAS, but not where the user prefers cuBLASLt.
inline bool may_take_tf32() {
  auto& context = at::globalContext();
  return context.blasPreferredBackend() == at::BlasBackend::Cublaslt &&
         context.float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
             at::Float32Precision::TF32;
}

// a [M, K] times each of b [B, K, N] on CUDA: [B, M, N]. Both are float or both double, and no factor is
// rounded whatever the user allows in torch's own products: no TF32, no 16 bits under autocast.
inline at::Tensor exact_product(const at::Tensor& a, const at::Tensor& b) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCUDA);
  const at::NoTF32Guard no_tf32;
  const auto product = [&](const at::Tensor& left, const at::Tensor& right) {
    return at::bmm(left.unsqueeze(0).expand({right.size(0), -1, -1}), right);
  };
  if (a.scalar_type() == at::kFloat && may_take_tf32())
    return product(a.to(at::kDouble), b.to(at::kDouble)).to(at::kFloat);
  return product(a, b);
}

}  // namespace hyenarec
