// The arguments of fft_conv, the operator behind it, and the checks of both.
#pragma once

#include "../common/operators.h"
#include "fft_conv.h"

namespace hyenarec {

struct FftConvArguments {
  const at::Tensor &u, &kernel;
  const OptionalTensor &skip, &pre_gate, &post_gate;

  auto each() const { return std::tie(u, kernel, skip, pre_gate, post_gate); }
  void check(const char* op = "fft_conv") const;
  void check_backward(const at::Tensor& grad) const;
  // The kernels of some channels with skip at lag 0, their `lags` padded with zeros: [channels, size].
  at::Tensor padded_kernel(int64_t first_channel, int64_t channels, int64_t lags, int64_t size) const;
};

// Gradients from grad (like u in shape and dtype, any strides): {u, kernel, skip, pre_gate, post_gate}, see
// detail::empty_gradients. Not differentiable: a second derivative raises.
using FftConvBackwardArguments = detail::BackwardArguments<FftConvArguments, 5>;
constexpr auto fft_conv_backward =
    detail::dispatch<"fft_conv_backward", Tensors<5>, FftConvBackwardArguments>;

// The gradients of a backward pass, which of them are wanted, and what it needs for them. With z = pre u,
// y = kernel * z + skip z, out = post y and h = post grad:
//   d/dpost = grad y,  d/dz = the correlation of kernel and h,  d/du = pre d/dz,  d/dpre = u d/dz,
//   d/dkernel[lag] = sum_{b, t} z[t - lag] h[t],  d/dskip = the same at lag 0.
struct FftConvGradients {
  std::array<at::Tensor, 5> all;
  bool u, kernel, skip, pre_gate, post_gate;

  explicit FftConvGradients(const FftConvBackwardArguments& arguments)
      : all(detail::empty_gradients(arguments.forward, arguments.needs_grad)),
        u(all[0].numel() > 0),
        kernel(all[1].numel() > 0),
        skip(all[2].numel() > 0),
        pre_gate(all[3].numel() > 0),
        post_gate(all[4].numel() > 0) {
    for (int i : {1, 2}) all[i].zero_();  // lags beyond the sequence have no gradient
  }

  bool correlation() const { return kernel || skip; }
  bool of_z() const { return u || pre_gate; }
  bool needs_z() const { return correlation() || post_gate; }
  bool needs_h() const { return correlation() || of_z(); }

  bool any() const { return needs_z() || needs_h(); }

  // Those of the parameters of some channels, from their sums [channels, at least `lags`] by lag.
  void store_correlation(const at::Tensor& sums, int64_t first_channel, int64_t lags) const {
    const auto of_channels = [&](int i) { return all[i].narrow(0, first_channel, sums.size(0)); };
    if (kernel) of_channels(1).narrow(1, 0, lags).copy_(sums.narrow(1, 0, lags));
    if (skip) of_channels(2).copy_(sums.select(1, 0));
  }
};

}  // namespace hyenarec
