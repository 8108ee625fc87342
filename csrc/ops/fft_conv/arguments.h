// The arguments of fft_conv, the operator behind it, and the checks of both.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

namespace hyenarec {

struct FftConvArguments {
  const at::Tensor& u;
  const at::Tensor& kernel;
  const std::optional<at::Tensor>& skip;
  const std::optional<at::Tensor>& pre_gate;
  const std::optional<at::Tensor>& post_gate;

  // f(u, kernel, ...)
  auto apply(const auto& f) const { return f(u, kernel, skip, pre_gate, post_gate); }
};

struct FftConvBackwardArguments {
  const at::Tensor& grad;
  FftConvArguments forward;
  std::array<bool, 5> needs_grad;
};

using FftConvGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// The operator fft_conv_backward.
using FftConvBackward = FftConvGradients(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& kernel,
    const std::optional<at::Tensor>& skip,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate,
    std::array<bool, 5> needs_grad);

// Gradients of fft_conv from grad (like u in shape and dtype, any strides): {u, kernel, skip, pre_gate,
// post_gate}, contiguous, each with its input's shape and dtype. needs_grad selects them in that order; one
// that is not selected, or whose argument is absent, comes back as an empty tensor of shape [0] in its
// would-be dtype (u's for u and gates, kernel's for kernel and skip). Not differentiable: a second derivative
// raises.
FftConvGradients fft_conv_backward(const FftConvBackwardArguments& arguments);

namespace detail {

// Every backend kernel (CPU, CUDA, Meta) calls these first, so that checks also run under inference_mode.
void check_fft_conv_arguments(const FftConvArguments& arguments);
void check_fft_conv_backward_arguments(const FftConvBackwardArguments& arguments);

}  // namespace detail
}  // namespace hyenarec
