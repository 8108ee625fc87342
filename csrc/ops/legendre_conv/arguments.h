// The arguments of legendre_conv and of the operators behind it.
#pragma once

#include "../legendre_scan/cpu/saved_states.h"
#include "legendre_conv.h"

namespace hyenarec {

struct LegendreConvArguments {
  const at::Tensor &u, &coeffs, &decay;
  c10::SymInt horizon;
  const OptionalTensor &skip, &pre_gate, &post_gate, &offsets;

  static constexpr auto kBackward = "legendre_conv_backward";
  auto each() const { return std::tie(u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets); }
  void check(const char* op = "legendre_conv") const;
  void check_backward(const at::Tensor& grad) const;
};

// The same result, and the states with which the backward pass on a CPU begins: [rows, N, D] in coeffs'
// dtype, see ../legendre_scan/cpu/saved_states.h. An operator of the CPU only.
constexpr auto legendre_conv_with_states =
    detail::dispatch<"legendre_conv_with_states", Tensors<2>, LegendreConvArguments>;

// Gradients from `grad` (like u in shape and dtype, any strides): {u, coeffs, decay, skip, pre_gate,
// post_gate}, see detail::empty_gradients. `states` are those of legendre_conv_with_states for the same
// arguments; a CPU computes them itself where they are needed and missing. Not differentiable: a second
// derivative raises.
using LegendreConvBackwardArguments = detail::ScanBackwardArguments<LegendreConvArguments>;
constexpr auto legendre_conv_backward =
    detail::dispatch<"legendre_conv_backward", Tensors<6>, LegendreConvBackwardArguments>;

}  // namespace hyenarec
