// A thread's view of activations: one channel of the rows of a chunk.
#pragma once

#include "forward.cuh"

namespace hyenarec {

// Rows of channels side by side, `stride` apart; data == nullptr stands for ones, or for what isn't wanted.
template <typename scalar_t>
struct ScanRows {
  scalar_t* data;
  int stride;  // 32 bits: the addresses of a chunk's rows are multiples of it, and registers are scarce

  __device__ scalar_t* at(int64_t row, int64_t channel) const { return data + row * stride + channel; }
};

// Zeros beyond `rows`.
template <typename T>
__device__ inline void keep_rows(int rows, T (&values)[kScanChunk]) {
  if (rows == kScanChunk) return;
#pragma unroll
  for (int j = 0; j < kScanChunk; ++j) values[j] = j < rows ? values[j] : T(0);
}
// values[j] = the channel of row - before + j, j < kCount, clamped to row + first .. row + last. Nearly all
// chunks are `whole`: then no row needs a comparison.
template <int kCount, typename scalar_t, typename T>
__device__ inline void load_channel(
    const ScanRows<const scalar_t>& io, int64_t channel, int64_t row, bool whole, int first, int last,
    int before, T (&values)[kCount]) {
  const scalar_t* from = io.at(row, channel);
  if (whole) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) values[j] = static_cast<T>(from[(j - before) * io.stride]);
  } else {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const int place = j - before < first ? first : j - before > last ? last : j - before;
      values[j] = static_cast<T>(from[place * io.stride]);
    }
  }
}
// values[j] = the channel of row + j; zero beyond `rows`, of which there is at least one.
template <typename scalar_t, typename T>
__device__ inline void load_rows(
    const ScanRows<const scalar_t>& io, int64_t channel, int64_t row, int rows, T (&values)[kScanChunk]) {
  load_channel(io, channel, row, rows == kScanChunk, 0, rows - 1, 0, values);
  keep_rows(rows, values);
}
template <typename scalar_t, typename T>
__device__ inline void multiply_rows(
    const ScanRows<const scalar_t>& io, int64_t channel, int64_t row, int rows, T (&values)[kScanChunk]) {
  if (io.data == nullptr) return;
  T factors[kScanChunk];
  load_rows(io, channel, row, rows, factors);
#pragma unroll
  for (int j = 0; j < kScanChunk; ++j) values[j] *= factors[j];
}
template <typename scalar_t, typename T>
__device__ inline void store_rows(
    const ScanRows<scalar_t>& target, int64_t channel, int64_t row, int rows, const T (&values)[kScanChunk]) {
  scalar_t* to = target.at(row, channel);
  if (rows == kScanChunk) {
#pragma unroll
    for (int j = 0; j < kScanChunk; ++j) to[j * target.stride] = static_cast<scalar_t>(values[j]);
  } else {
#pragma unroll
    for (int j = 0; j < kScanChunk; ++j) {
      if (j < rows) to[j * target.stride] = static_cast<scalar_t>(values[j]);
    }
  }
}
// The product of the values with the rows of `factor`, where both are wanted.
template <typename scalar_t, typename T>
__device__ inline void store_products(
    const ScanRows<scalar_t>& target, const ScanRows<const scalar_t>& factor, int64_t channel, int64_t row,
    int rows, const T (&values)[kScanChunk]) {
  if (target.data == nullptr) return;
  T products[kScanChunk];
#pragma unroll
  for (int j = 0; j < kScanChunk; ++j) products[j] = values[j];
  multiply_rows(factor, channel, row, rows, products);
  store_rows(target, channel, row, rows, products);
}

}  // namespace hyenarec
