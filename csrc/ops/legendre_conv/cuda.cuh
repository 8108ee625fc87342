// Device code of legendre_conv: what the scan's sweeps read and write.
//
// Bytes that must move, a row of D channels: forward u, two gates and out, 4 D; backward grad, u, two gates
// and three gradients, 7 D.
#pragma once

#include "../legendre_scan/cuda/backward.cuh"
#include "../legendre_scan/cuda/rows.cuh"

namespace hyenarec {

// out = post (kernel * (pre u)); see the sweeps for what the functions mean.
template <typename scalar_t>
struct LegendreConvIO {
  using T = accumulate_t<scalar_t>;
  static constexpr int kSums = 0;

  ScanRows<const scalar_t> u, pre, post, grad;
  ScanRows<scalar_t> out, grad_u, grad_pre, grad_post;

  __device__ ScanChunk<T> load_input(const ScanChunkRows& rows) const { return load_product(u, pre, rows); }
  __device__ void store_output(const ScanChunkRows& rows, const ScanChunk<T>& y) const {
    store_products(out, post, rows, y);
  }
  __device__ void poison_output(int64_t channel, int64_t row) const { poison(out, channel, row); }

  __device__ ScanChunk<T> load_output_grad(const ScanChunkRows& rows) const {
    return load_product(grad, post, rows);
  }
  struct Memory {};
  __device__ void begin_segment(Memory&, int64_t, int64_t, int64_t) const {}
  __device__ void end_segment(const Memory&) const {}
  __device__ void store_gate_grad(Memory&, const ScanChunkRows& rows, const ScanChunk<T>& y) const {
    store_products(grad_post, grad, rows, y);
  }
  __device__ void store_input_grad(Memory&, const ScanChunkRows& rows, const ScanChunk<T>& dx) const {
    store_products(grad_u, pre, rows, dx);
    store_products(grad_pre, u, rows, dx);
  }
  __device__ void store_sums(const Memory&, T*) const {}
  __device__ void poison_gradients(int64_t channel, int64_t row) const {
    poison(grad_u, channel, row);
    poison(grad_pre, channel, row);
    poison(grad_post, channel, row);
  }
};

}  // namespace hyenarec
