// The tensors of an operator that scans, as ScanCall takes them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "result_writer.h"
#include "scan.h"

namespace hyenarec::scan {

// coeffs [D, N], decay [D], skip [D] or none; contiguous.
struct ParameterTensors {
  at::Tensor coeffs, decay, skip;

  ParameterTensors(
      const at::Tensor& coeffs_, const at::Tensor& decay_, const std::optional<at::Tensor>& skip_)
      : coeffs(coeffs_.contiguous()),
        decay(decay_.contiguous()),
        skip(skip_ ? skip_->contiguous() : at::Tensor()) {}

  template <typename compute_t>
  ScanArguments<compute_t> arguments(int64_t horizon) const {
    return {
        coeffs.size(0),
        coeffs.size(1),
        coeffs.const_data_ptr<compute_t>(),
        decay.const_data_ptr<compute_t>(),
        skip.defined() ? skip.const_data_ptr<compute_t>() : nullptr,
        horizon};
  }
};

// A gradient's memory; nullptr if it is [0], not wanted, though it may be that of a parameter without
// numbers.
template <typename compute_t>
compute_t* gradient_of(const at::Tensor& gradient) {
  return gradient.numel() > 0 ? gradient.mutable_data_ptr<compute_t>() : nullptr;
}

// Undefined: none.
template <typename compute_t>
States<compute_t> states_of(const at::Tensor& states) {
  if (!states.defined()) return {};
  return {states.mutable_data_ptr<compute_t>(), states.size(0)};
}
template <typename compute_t>
States<const compute_t> saved_states_of(const at::Tensor& states) {
  if (!states.defined()) return {};
  return {states.const_data_ptr<compute_t>(), states.size(0)};
}

// For go_past_cache: a contiguous tensor [.., channels].
inline Result result_of(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return {nullptr, 0, 0};
  return {
      tensor.const_data_ptr(), static_cast<int64_t>(tensor.nbytes()),
      tensor.size(-1) * static_cast<int64_t>(tensor.element_size())};
}

}  // namespace hyenarec::scan
