// A call as the kernels of every device get it; tensors.h makes it of tensors. No torch here.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../common/macros.h"

namespace hyenarec {

// Rows of neighbouring channels, `stride` elements apart; nullptr: absent, with a stride of 0.
template <typename scalar_t>
struct NormRows {
  const scalar_t* data;
  int64_t stride;

  HYENAREC_HOST_DEVICE const scalar_t* row(int64_t i) const { return data + i * stride; }
};

// Of 2^16 levels that an element may draw, the `dropped` lowest ones make it zero, the others multiply it by
// `scale`. The seed stays in the memory of its device; without one nothing is dropped.
template <typename T>
struct NormDropout {
  const int64_t* seed;
  uint32_t dropped;
  T scale;
};

// The residual may be absent. Results are contiguous.
template <typename branch_t, typename sum_t>
struct NormForward {
  using T = std::conditional_t<std::is_same_v<sum_t, double>, double, float>;

  int64_t rows, channels;
  NormRows<branch_t> branch;
  NormRows<sum_t> residual;
  const T *weight, *bias;
  T eps;
  NormDropout<T> dropout;
  sum_t *normed, *sum;
  T *mean, *rstd;
};

// An absent gradient of normed or sum is zeros; nullptr of branch, residual or partial: not needed.
template <typename branch_t, typename sum_t>
struct NormBackward {
  using T = std::conditional_t<std::is_same_v<sum_t, double>, double, float>;

  int64_t rows, channels;
  int64_t run;  // rows that a block goes over; on CUDA, each of its teams
  NormRows<sum_t> grad_normed, grad_sum, sum;
  const T *mean, *rstd, *weight;
  NormDropout<T> dropout;
  branch_t* grad_branch;
  sum_t* grad_residual;
  T* partial;  // [blocks, 2, channels], zeros: the blocks' parts of the gradients of weight and bias
};

}  // namespace hyenarec
