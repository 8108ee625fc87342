// Neighbouring channels of a row as one vector: loads, stores, a block's sums over rows.
#pragma once

#include "device.cuh"

namespace hyenarec {

// kVector channels of one row, starting at `source`, in the accumulation type.
template <typename scalar_t, int kVector>
__device__ inline Vector<accumulate_t<scalar_t>, kVector> load_channels(const scalar_t* source) {
  const auto raw = *reinterpret_cast<const Vector<scalar_t, kVector>*>(source);
  Vector<accumulate_t<scalar_t>, kVector> result;
#pragma unroll
  for (int i = 0; i < kVector; ++i) result.value[i] = static_cast<accumulate_t<scalar_t>>(raw.value[i]);
  return result;
}

template <typename scalar_t, int kVector>
__device__ inline void store_channels(
    scalar_t* target, const Vector<accumulate_t<scalar_t>, kVector>& value) {
  Vector<scalar_t, kVector> raw;
#pragma unroll
  for (int i = 0; i < kVector; ++i) raw.value[i] = static_cast<scalar_t>(value.value[i]);
  *reinterpret_cast<Vector<scalar_t, kVector>*>(target) = raw;
}

// Writes the block's sum of `mine` over its runs (threadIdx.y), in their order, to target[0 .. lanes *
// kVector).
template <typename T, int kVector>
__device__ inline void store_group_sum(
    const Vector<T, kVector>& mine, T* shared, T* target, int64_t channels_left) {
  const int width = blockDim.x * kVector;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kVector; ++i) shared[threadIdx.y * width + threadIdx.x * kVector + i] = mine.value[i];
  __syncthreads();
  for (int column = threadIdx.y * blockDim.x + threadIdx.x; column < width;
       column += blockDim.x * blockDim.y) {
    T sum = T(0);
    for (unsigned int run = 0; run < blockDim.y; ++run) sum += shared[run * width + column];
    if (column < channels_left) target[column] = sum;
  }
}

}  // namespace hyenarec
