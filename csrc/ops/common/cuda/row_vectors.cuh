// Neighbouring channels of a row as one vector: loads, stores, a block's sums over rows.
#pragma once

#include "device.cuh"

namespace hyenarec {

// kVector channels of one row, starting at `source`, in the accumulation type.
template <typename scalar_t, int kVector>
__device__ inline Vector<accumulate_t<scalar_t>, kVector> load_channels(const scalar_t* source) {
  const auto raw = *reinterpret_cast<const AlignedVector<scalar_t, kVector>*>(source);
  return raw.vector.template to<accumulate_t<scalar_t>>();
}

template <typename scalar_t, int kVector>
__device__ inline void store_channels(
    scalar_t* target, const Vector<accumulate_t<scalar_t>, kVector>& value) {
  *reinterpret_cast<AlignedVector<scalar_t, kVector>*>(target) = {value.template to<scalar_t>()};
}

// Writes the block's sum of `mine` over its runs (threadIdx.y), in their order, to target[0 .. lanes *
// kVector).
template <typename T, int kVector>
__device__ inline void store_group_sum(
    const Vector<T, kVector>& mine, T* shared, T* target, int64_t channels_left) {
  const int width = blockDim.x * kVector;
  __syncthreads();
  unrolled<kVector>([&](int i) { shared[threadIdx.y * width + threadIdx.x * kVector + i] = mine[i]; });
  __syncthreads();
  for (int column = threadIdx.y * blockDim.x + threadIdx.x; column < width;
       column += blockDim.x * blockDim.y) {
    T sum = T(0);
    for (unsigned int run = 0; run < blockDim.y; ++run) sum += shared[run * width + column];
    if (column < channels_left) target[column] = sum;
  }
}

}  // namespace hyenarec
