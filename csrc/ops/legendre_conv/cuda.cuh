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
  using Scalar = scalar_t;
  using T = accumulate_t<scalar_t>;
  static constexpr int kSums = 0;

  ScanRows<const scalar_t> u, pre, post, grad;
  ScanRows<scalar_t> out, grad_u, grad_pre, grad_post;

  __device__ void load_input(int64_t channel, int64_t row, int64_t, int rows, T (&x)[kScanChunk]) const {
    load_rows(u, channel, row, rows, x);
    multiply_rows(pre, channel, row, rows, x);
  }
  __device__ void store_output(int64_t channel, int64_t row, int64_t, int rows, T (&y)[kScanChunk]) const {
    multiply_rows(post, channel, row, rows, y);
    store_rows(out, channel, row, rows, y);
  }
  __device__ void poison_output(int64_t channel, int64_t row) const {
    *out.at(row, channel) = static_cast<scalar_t>(NAN);
  }

  __device__ void load_output_grad(
      int64_t channel, int64_t row, int64_t, int rows, T (&dy)[kScanChunk]) const {
    load_rows(grad, channel, row, rows, dy);
    multiply_rows(post, channel, row, rows, dy);
  }
  struct Memory {};
  __device__ void begin(Memory&) const {}
  __device__ void begin_segment(Memory&, int64_t, int64_t, int64_t) const {}
  __device__ void end_segment(const Memory&) const {}
  __device__ void store_gate_grad(
      Memory&, int64_t channel, int64_t row, int64_t, int rows, const T (&y)[kScanChunk]) const {
    store_products(grad_post, grad, channel, row, rows, y);
  }
  __device__ void store_input_grad(
      Memory&, int64_t channel, int64_t row, int64_t, int rows, const T (&dx)[kScanChunk]) const {
    store_products(grad_u, pre, channel, row, rows, dx);
    store_products(grad_pre, u, channel, row, rows, dx);
  }
  __device__ void store_sums(const Memory&, T*) const {}
  __device__ void poison_gradients(int64_t channel, int64_t row) const {
    const auto poison = [&](const ScanRows<scalar_t>& target) {
      if (target.data != nullptr) *target.at(row, channel) = static_cast<scalar_t>(NAN);
    };
    poison(grad_u);
    poison(grad_pre);
    poison(grad_post);
  }
};

}  // namespace hyenarec
