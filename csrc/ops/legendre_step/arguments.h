// The arguments of legendre_step and legendre_step_weights, and what their kernels share.
#pragma once

#include "../common/operators.h"
#include "legendre_step.h"
#include "sizes.h"

namespace hyenarec {

struct LegendreStepWeightsArguments {
  const at::Tensor &coeffs, &decay;
  c10::SymInt horizon;
  const OptionalTensor& skip;

  auto each() const { return std::tie(coeffs, decay, horizon, skip); }
  void check() const;
};

struct LegendreStepArguments {
  at::Tensor& state;
  const at::Tensor &u, &position, &weights;
  c10::SymInt horizon;
  const OptionalTensor &pre_gate, &post_gate;

  auto each() const { return std::tie(state, u, position, weights, horizon, pre_gate, post_gate); }
  void check() const;
  // From the numbers of rows of state and weights.
  LegendreStepSizes sizes() const;
};

namespace detail {

// An activation or gate as [B, L, D] with channels side by side; undefined if absent.
at::Tensor legendre_step_events(const OptionalTensor& tensor);

// The numbers of legendre_step_weights, on any device.
at::Tensor make_legendre_step_weights(const LegendreStepWeightsArguments& arguments);

}  // namespace detail
}  // namespace hyenarec
