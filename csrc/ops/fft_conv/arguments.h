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
};

// Gradients from grad (like u in shape and dtype, any strides): {u, kernel, skip, pre_gate, post_gate}, see
// detail::empty_gradients. Not differentiable: a second derivative raises.
using FftConvBackwardArguments = detail::BackwardArguments<FftConvArguments, 5>;
constexpr auto fft_conv_backward =
    detail::dispatch<"fft_conv_backward", Tensors<5>, FftConvBackwardArguments>;

// Which gradients a backward pass is to compute, and what it needs for them. With z = pre u, y = kernel * z +
// skip z, out = post y and h = post grad:
//   d/dpost = grad y,  d/dz = the correlation of kernel and h,  d/du = pre d/dz,  d/dpre = u d/dz,
//   d/dkernel[lag] = sum_{b, t} z[t - lag] h[t],  d/dskip = the same at lag 0.
struct FftConvWanted {
  bool u, kernel, skip, pre_gate, post_gate;

  // Of gradients as detail::empty_gradients gives them.
  explicit FftConvWanted(const std::array<at::Tensor, 5>& gradients)
      : u(gradients[0].numel() > 0),
        kernel(gradients[1].numel() > 0),
        skip(gradients[2].numel() > 0),
        pre_gate(gradients[3].numel() > 0),
        post_gate(gradients[4].numel() > 0) {}

  bool correlation() const { return kernel || skip; }
  bool of_z() const { return u || pre_gate; }
  bool needs_z() const { return correlation() || post_gate; }
  bool needs_h() const { return correlation() || of_z(); }
};

}  // namespace hyenarec
