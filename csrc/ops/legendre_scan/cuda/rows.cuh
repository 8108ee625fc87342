// A thread's view of activations: one channel of the rows of a chunk.
#pragma once

#include "layout.cuh"

namespace hyenarec {

// Rows of channels side by side, `stride` apart; data == nullptr stands for ones, or for what isn't wanted.
template <typename scalar_t>
struct ScanRows {
  scalar_t* data;
  int stride;  // 32 bits: the addresses of a chunk's rows are multiples of it, and registers are scarce

  __device__ scalar_t* at(int64_t row, int64_t channel) const { return data + row * stride + channel; }
};

// Zeros beyond the rows.
template <typename T>
__device__ inline void keep_rows(const ScanChunkRows& rows, ScanChunk<T>& values) {
  if (rows.is_whole()) return;
  unrolled<kScanChunk>([&](int j) { values[j] = j < rows.count ? values[j] : T(0); });
}
// The channel of row - before + j, j < kCount, each clamped to row + first .. the last of the rows. Nearly
// all chunks are `whole`: then no row needs a comparison.
template <int kCount, typename scalar_t>
__device__ inline Vector<accumulate_t<scalar_t>, kCount> load_channel(
    const ScanRows<const scalar_t>& io, const ScanChunkRows& rows, bool whole, int first, int before) {
  using T = accumulate_t<scalar_t>;
  const scalar_t* from = io.at(rows.row, rows.channel);
  Vector<T, kCount> values;
  if (whole) {
    unrolled<kCount>([&](int j) { values[j] = static_cast<T>(from[(j - before) * io.stride]); });
  } else {
    unrolled<kCount>([&](int j) {
      const int last = rows.count - 1;
      const int place = j - before < first ? first : j - before > last ? last : j - before;
      values[j] = static_cast<T>(from[place * io.stride]);
    });
  }
  return values;
}
// The rows, of which there is at least one; zero beyond them.
template <typename scalar_t>
__device__ inline ScanChunk<accumulate_t<scalar_t>> load_rows(
    const ScanRows<const scalar_t>& io, const ScanChunkRows& rows) {
  auto values = load_channel<kScanChunk>(io, rows, rows.is_whole(), 0, 0);
  keep_rows(rows, values);
  return values;
}
template <typename scalar_t, typename T>
__device__ inline void multiply_rows(
    const ScanRows<const scalar_t>& io, const ScanChunkRows& rows, ScanChunk<T>& values) {
  if (io.data != nullptr) values *= load_rows(io, rows);
}
// The product of two activations, of which `factor` may be absent.
template <typename scalar_t>
__device__ inline ScanChunk<accumulate_t<scalar_t>> load_product(
    const ScanRows<const scalar_t>& io, const ScanRows<const scalar_t>& factor, const ScanChunkRows& rows) {
  auto values = load_rows(io, rows);
  multiply_rows(factor, rows, values);
  return values;
}
template <typename scalar_t, typename T>
__device__ inline void store_rows(
    const ScanRows<scalar_t>& target, const ScanChunkRows& rows, const ScanChunk<T>& values) {
  scalar_t* to = target.at(rows.row, rows.channel);
  if (rows.is_whole()) {
    unrolled<kScanChunk>([&](int j) { to[j * target.stride] = static_cast<scalar_t>(values[j]); });
  } else {
    unrolled<kScanChunk>([&](int j) {
      if (j < rows.count) to[j * target.stride] = static_cast<scalar_t>(values[j]);
    });
  }
}
// The product of the values with the rows of `factor`, where both are wanted.
template <typename scalar_t, typename T>
__device__ inline void store_products(
    const ScanRows<scalar_t>& target, const ScanRows<const scalar_t>& factor, const ScanChunkRows& rows,
    ScanChunk<T> values) {
  if (target.data == nullptr) return;
  multiply_rows(factor, rows, values);
  store_rows(target, rows, values);
}
// NaN to a row's channel, where it is wanted.
template <typename scalar_t>
__device__ inline void poison(const ScanRows<scalar_t>& target, int64_t channel, int64_t row) {
  if (target.data != nullptr) *target.at(row, channel) = static_cast<scalar_t>(NAN);
}

}  // namespace hyenarec
