// The arguments of fft_conv, the operator behind it, and the checks of both.
#pragma once

#include <array>
#include <tuple>

#include "../common/operators.h"
#include "fft_conv.h"

namespace hyenarec {

struct FftConvArguments {
  const at::Tensor &u, &kernel;
  const OptionalTensor &skip, &pre_gate, &post_gate;

  template <typename Call>
  decltype(auto) apply(const Call& call) const {
    return call(u, kernel, skip, pre_gate, post_gate);
  }
};

struct FftConvBackwardArguments {
  const at::Tensor& grad;
  FftConvArguments forward;
  std::array<bool, 5> needs_grad;
};

// With a name, nvcc forgets the default arguments, which no template argument may have.
using FftConvSignature = decltype(fft_conv);

// Gradients of fft_conv from grad (like u in shape and dtype, any strides): {u, kernel, skip, pre_gate,
// post_gate}, contiguous, each with its input's shape and dtype. needs_grad selects them in that order; one
// that is not selected, or whose argument is absent, comes back as an empty tensor of shape [0] in its
// would-be dtype (u's for u and gates, kernel's for kernel and skip). Not differentiable: a second derivative
// raises.
using FftConvGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
FftConvGradients fft_conv_backward(const FftConvBackwardArguments& arguments);
using FftConvBackward = detail::Backward<FftConvGradients, FftConvSignature, std::array<bool, 5>>::type;

namespace detail {

// Every kernel (CPU, CUDA, Meta) calls these first, so that checks also run under inference_mode.
void check_fft_conv_arguments(const FftConvArguments& arguments);
void check_fft_conv_backward_arguments(const FftConvBackwardArguments& arguments);

}  // namespace detail
}  // namespace hyenarec
