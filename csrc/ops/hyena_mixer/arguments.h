// The arguments of hyena_mixer and of the operators behind it.
#pragma once

#include <array>
#include <tuple>

#include "../common/operators.h"
#include "hyena_mixer.h"

namespace hyenarec {

struct HyenaMixerArguments {
  const at::Tensor &x, &short_weight;
  const OptionalTensor& short_bias;
  const at::Tensor &coeffs, &decay;
  c10::SymInt horizon;
  const at::Tensor& skip;
  const OptionalTensor& offsets;

  template <typename Call>
  decltype(auto) apply(const Call& call) const {
    return call(x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets);
  }
};

struct HyenaMixerBackwardArguments {
  const at::Tensor& grad;
  HyenaMixerArguments forward;
  std::array<bool, 6> needs_grad;
  const OptionalTensor& states;
};

// With a name, nvcc forgets the default arguments, which no template argument may have.
using HyenaMixerSignature = decltype(hyena_mixer);

// The same result, and the states with which the backward pass on a CPU begins: [rows, N, D] in coeffs'
// dtype, see ../legendre_scan/cpu/saved_states.h. An operator of the CPU only.
std::tuple<at::Tensor, at::Tensor> hyena_mixer_with_states(const HyenaMixerArguments& arguments);
using HyenaMixerWithStates = detail::Returning<std::tuple<at::Tensor, at::Tensor>, HyenaMixerSignature>::type;

// Gradients from `grad` (like the result in shape and dtype, any strides): {x, short_weight, short_bias,
// coeffs, decay, skip}, contiguous, each with its input's shape and dtype. needs_grad selects them in that
// order; one that is not selected, or whose argument is absent, comes back as an empty tensor of shape [0] in
// its would-be dtype. `states` are those of hyena_mixer_with_states for the same arguments; a CPU computes
// them itself where they are needed and missing. Not differentiable: a second derivative raises.
using HyenaMixerGradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
HyenaMixerGradients hyena_mixer_backward(const HyenaMixerBackwardArguments& arguments);
using HyenaMixerBackward = detail::Backward<
    HyenaMixerGradients, HyenaMixerSignature, std::array<bool, 6>, const OptionalTensor&>::type;

namespace detail {

// Every kernel (CPU, CUDA, Meta) calls these first, so that checks also run under inference_mode.
void check_hyena_mixer_arguments(const HyenaMixerArguments& arguments);
void check_hyena_mixer_backward_arguments(const HyenaMixerBackwardArguments& arguments);

}  // namespace detail
}  // namespace hyenarec
