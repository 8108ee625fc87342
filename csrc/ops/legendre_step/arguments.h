// The arguments of legendre_step and legendre_step_weights, and what their kernels share.
#pragma once

#include "../common/operators.h"
#include "layout.h"
#include "legendre_step.h"

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
  // N and C, from the numbers of rows of state and weights.
  std::pair<int64_t, int64_t> sizes() const;
};

// The arguments as the kernels read them: activations [B, L, D] with channels side by side, undefined if
// absent; the others contiguous.
struct LegendreStepInputs {
  at::Tensor u, pre_gate, post_gate, positions, weights;
  LegendreStepWork work;

  explicit LegendreStepInputs(const LegendreStepArguments& arguments);
};

namespace detail {

// The numbers of legendre_step_weights, on any device.
at::Tensor make_legendre_step_weights(const LegendreStepWeightsArguments& arguments);

}  // namespace detail
}  // namespace hyenarec
