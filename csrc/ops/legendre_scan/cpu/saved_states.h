// The states that a forward pass of the Legendre scan on the CPU saves for its backward pass: those carried
// from segment to segment (see segment_tables.h). From them the backward pass finds the states of a segment's
// chunks when it gets there, and needn't walk the whole history before. The backward pass on CUDA computes
// its own.
#pragma once

#include "../../common/operators.h"

namespace hyenarec::detail {

// Room for them, [rows, N, D] in coeffs' dtype, a sequence's one after another. `activations` are [B, L,
// ...], or packed [total, ...] with offsets. There are more rows than states, whose number depends on the
// values of horizon and offsets: two, and one for each 256 events (N <= 9) or 512 events.
at::Tensor empty_legendre_states(
    const at::Tensor& activations, const at::Tensor& coeffs, const c10::SymInt& horizon,
    const OptionalTensor& offsets);

// Throws unless `states` could be what empty_legendre_states gave.
void check_legendre_states(
    const char* op, const at::Tensor& states, const at::Tensor& activations, const at::Tensor& coeffs,
    const c10::SymInt& horizon, const OptionalTensor& offsets);

// BackwardArguments of an operator that scans, and the states that its forward pass saved on a CPU.
template <typename Forward>
struct ScanBackwardArguments {
  const at::Tensor& grad;
  Forward forward;
  std::array<bool, 6> needs_grad;
  const OptionalTensor& states;

  auto each() const { return std::tuple_cat(std::tie(grad), forward.each(), std::tie(needs_grad, states)); }
  void check() const {
    forward.check_backward(grad);
    if (states)
      check_legendre_states(
          Forward::kBackward, *states, std::get<0>(forward.each()), forward.coeffs, forward.horizon,
          forward.offsets);
  }
};

}  // namespace hyenarec::detail
