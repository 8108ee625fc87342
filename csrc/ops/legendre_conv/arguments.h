// The arguments of legendre_conv and of the operators behind it.
#pragma once

#include <array>
#include <tuple>

#include "../common/operators.h"
#include "legendre_conv.h"

namespace hyenarec {

struct LegendreConvArguments {
  const at::Tensor &u, &coeffs, &decay;
  c10::SymInt horizon;
  const OptionalTensor &skip, &pre_gate, &post_gate, &offsets;

  template <typename Call>
  decltype(auto) apply(const Call& call) const {
    return call(u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets);
  }
};

struct LegendreConvBackwardArguments {
  const at::Tensor& grad;
  LegendreConvArguments forward;
  std::array<bool, 6> needs_grad;
  const OptionalTensor& states;
};

// With a name, nvcc forgets the default arguments, which no template argument may have.
using LegendreConvSignature = decltype(legendre_conv);

// The same result, and the states with which the backward pass on a CPU begins: [rows, N, D] in coeffs'
// dtype, see ../legendre_scan/cpu/saved_states.h. An operator of the CPU only.
std::tuple<at::Tensor, at::Tensor> legendre_conv_with_states(const LegendreConvArguments& arguments);
using LegendreConvWithStates =
    detail::Returning<std::tuple<at::Tensor, at::Tensor>, LegendreConvSignature>::type;

// Gradients from `grad` (like u in shape and dtype, any strides): {u, coeffs, decay, skip, pre_gate,
// post_gate}, contiguous, each with its input's shape and dtype. needs_grad selects them in that order; one
// that is not selected, or whose argument is absent, comes back as an empty tensor of shape [0] in its
// would-be dtype. `states` are those of legendre_conv_with_states for the same arguments; a CPU computes them
// itself where they are needed and missing. Not differentiable: a second derivative raises.
using LegendreConvGradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
LegendreConvGradients legendre_conv_backward(const LegendreConvBackwardArguments& arguments);
using LegendreConvBackward = detail::Backward<
    LegendreConvGradients, LegendreConvSignature, std::array<bool, 6>, const OptionalTensor&>::type;

namespace detail {

// Every kernel (CPU, CUDA, Meta) calls these first, so that checks also run under inference_mode.
void check_legendre_conv_arguments(const LegendreConvArguments& arguments);
void check_legendre_conv_backward_arguments(const LegendreConvBackwardArguments& arguments);

}  // namespace detail
}  // namespace hyenarec
