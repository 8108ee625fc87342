// Device code of linear_cross_entropy: the softmax of a tile of scores between two matrix products, a block a
// row.
//
// A thread takes every blockDim.x-th class, so loads are coalesced. Two sweeps: the first keeps a running
// maximum and the sum of exponentials below it, the second writes the gradient, which may lie where the
// logits are. What must move: the logits twice (the second time mostly from the second-level cache), the
// gradient once.
#pragma once

#include "../common/cuda/device.cuh"
#include "rows.h"

namespace hyenarec {

constexpr int kCrossEntropyMaxWarps = 16;

// What is known of a row's scores, or of a part of them: the maximum, the sum of their exponentials over that
// of the maximum, their sum and number.
template <typename T>
struct ScoreSums {
  T maximum, exponentials, total, count;
};

// A NaN is never the maximum, but makes the sum of exponentials NaN.
template <typename T>
__device__ inline ScoreSums<T> joined(const ScoreSums<T>& a, const ScoreSums<T>& b) {
  const T maximum = b.maximum > a.maximum ? b.maximum : a.maximum;
  if (maximum == -static_cast<T>(INFINITY)) {  // else infinity less infinity
    return {maximum, a.exponentials + b.exponentials, a.total + b.total, a.count + b.count};
  }
  return {
      maximum, a.exponentials * exp(a.maximum - maximum) + b.exponentials * exp(b.maximum - maximum),
      a.total + b.total, a.count + b.count};
}

template <typename T>
__device__ inline ScoreSums<T> joined(const ScoreSums<T>& sums, T score) {
  ScoreSums<T> result{sums.maximum, sums.exponentials, sums.total + score, sums.count + 1};
  if (score > sums.maximum) {
    result.maximum = score;
    result.exponentials = sums.exponentials * exp(sums.maximum - score) + 1;
  } else if (score != -static_cast<T>(INFINITY)) {
    result.exponentials += exp(score - sums.maximum);
  }
  return result;
}

// Over the whole block, the same bits in every thread. `shared` holds one ScoreSums a warp.
template <typename T>
__device__ inline ScoreSums<T> over_block(ScoreSums<T> sums, ScoreSums<T>* shared) {
  for (int distance = 16; distance > 0; distance /= 2) {
    const ScoreSums<T> other{
        __shfl_xor_sync(0xffffffffu, sums.maximum, distance),
        __shfl_xor_sync(0xffffffffu, sums.exponentials, distance),
        __shfl_xor_sync(0xffffffffu, sums.total, distance),
        __shfl_xor_sync(0xffffffffu, sums.count, distance)};
    // Both lanes join in the same order.
    sums = threadIdx.x & distance ? joined(other, sums) : joined(sums, other);
  }
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sums;
  __syncthreads();
  sums = shared[0];
  for (unsigned int warp = 1; warp < blockDim.x / 32; ++warp) sums = joined(sums, shared[warp]);
  return sums;
}

// Losses and, if they are needed, gradients of a tile. A target is not checked: one that is no class gives
// NaN.
template <typename scalar_t>
__global__ void __launch_bounds__(32 * kCrossEntropyMaxWarps)
    cross_entropy_rows(CrossEntropyRows<scalar_t, accumulate_t<scalar_t>> rows) {
  using T = accumulate_t<scalar_t>;
  const int64_t row = blockIdx.x, target = rows.target[row];
  const T* logits = rows.logits + row * rows.classes;
  scalar_t* gradient = rows.gradient == nullptr ? nullptr : rows.gradient + row * rows.classes;
  const bool sampled = rows.target_score != nullptr;
  if (target < 0) {  // the whole block
    for (int64_t j = threadIdx.x; gradient != nullptr && j < rows.classes; j += blockDim.x)
      gradient[j] = scalar_t(0);
    if (threadIdx.x == 0) {
      rows.losses[row] = T(0);
      if (rows.of_target != nullptr) rows.of_target[row] = T(0);
    }
    return;
  }

  ScoreSums<T> sums{-static_cast<T>(INFINITY), T(0), T(0), T(0)};
  for (int64_t j = threadIdx.x; j < rows.classes; j += blockDim.x) {
    if (sampled && rows.candidates[j] == target) continue;
    sums = joined(sums, logits[j] + rows.shift[j]);
  }
  T target_score = static_cast<T>(NAN);
  if (sampled) {
    target_score = rows.target_score[row];
  } else if (target < rows.classes) {
    target_score = logits[target] + rows.shift[target];  // before any thread may write there
  }
  HYENAREC_SHARED_MEMORY(ScoreSums<T>, shared);
  sums = over_block(sums, shared);
  if (sampled) sums = joined(sums, target_score);

  const T weight = rows.row_weight == nullptr ? T(1) : rows.row_weight[row];
  const T scale = weight / sums.exponentials;
  const T uniform = weight * rows.smoothing / sums.count, certain = weight * (T(1) - rows.smoothing);
  if (threadIdx.x == 0) {
    T loss = log(sums.exponentials) + (sums.maximum - (T(1) - rows.smoothing) * target_score);
    if (rows.smoothing > T(0)) loss -= rows.smoothing * sums.total / sums.count;
    rows.losses[row] = loss;
    if (rows.of_target != nullptr)
      rows.of_target[row] = exp(target_score - sums.maximum) * scale - uniform - certain;
  }
  if (gradient == nullptr) return;
  for (int64_t j = threadIdx.x; j < rows.classes; j += blockDim.x) {
    T value = exp(logits[j] + rows.shift[j] - sums.maximum) * scale - uniform;
    if (sampled && rows.candidates[j] == target) value = T(0);
    if (!sampled && j == target) value -= certain;
    gradient[j] = static_cast<scalar_t>(value);
  }
}

// A thread takes at least four classes, if that leaves a warp.
template <typename scalar_t>
inline LaunchShape cross_entropy_shape(int64_t rows, int64_t classes) {
  unsigned int warps = 1;
  while (warps < kCrossEntropyMaxWarps && 4 * 32 * warps < classes) warps *= 2;
  return {rows, dim3(32 * warps), warps * sizeof(ScoreSums<accumulate_t<scalar_t>>)};
}

}  // namespace hyenarec
