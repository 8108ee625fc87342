// The arguments of hyena_mixer and of the operators behind it.
#pragma once

#include "../legendre_scan/cpu/saved_states.h"
#include "hyena_mixer.h"

namespace hyenarec {

struct HyenaMixerArguments {
  const at::Tensor &x, &short_weight;
  const OptionalTensor& short_bias;
  const at::Tensor &coeffs, &decay;
  c10::SymInt horizon;
  const at::Tensor& skip;
  const OptionalTensor& offsets;

  static constexpr auto kBackward = "hyena_mixer_backward";
  auto each() const { return std::tie(x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets); }
  void check(const char* op = "hyena_mixer") const;
  void check_backward(const at::Tensor& grad) const;
  // The sizes of the result: those of x with a third of its channels.
  c10::SymDimVector output_sizes() const;
};

// The same result, and the states with which the backward pass on a CPU begins: [rows, N, D] in coeffs'
// dtype, see ../legendre_scan/cpu/saved_states.h. An operator of the CPU only.
constexpr auto hyena_mixer_with_states =
    detail::dispatch<"hyena_mixer_with_states", Tensors<2>, HyenaMixerArguments>;

// Gradients from `grad` (like the result in shape and dtype, any strides): {x, short_weight, short_bias,
// coeffs, decay, skip}, see detail::empty_gradients. `states` are those of hyena_mixer_with_states for the
// same arguments; a CPU computes them itself where they are needed and missing. Not differentiable: a second
// derivative raises.
using HyenaMixerBackwardArguments = detail::ScanBackwardArguments<HyenaMixerArguments>;
constexpr auto hyena_mixer_backward =
    detail::dispatch<"hyena_mixer_backward", Tensors<6>, HyenaMixerBackwardArguments>;

}  // namespace hyenarec
