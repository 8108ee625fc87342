// The states of the Legendre scan that a forward pass on the CPU saves for its backward pass: those that sequences hand
// on from section to section (see cpu/section_tables.h). From them the backward pass finds the states of a section's
// chunks when it gets there, and needn't walk the whole history before. The backward pass on CUDA computes its own.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>

namespace hyenarec::detail {

// Room for them, [rows, N, D] in coeffs' dtype, a sequence's one after another. `activations` are [B, L, ...], or packed
// [total, ...] with offsets. There are more rows than states, for how many these are depends on the horizon's and the offsets'
// values, but at most one for 256 events (N <= 9) or 512 events, and two.
at::Tensor empty_legendre_states(
    const at::Tensor& activations,
    const at::Tensor& coeffs,
    const c10::SymInt& horizon,
    const std::optional<at::Tensor>& offsets);

// Throws unless `states` could be what empty_legendre_states gave.
void check_legendre_states(
    const char* op,
    const at::Tensor& states,
    const at::Tensor& activations,
    const at::Tensor& coeffs,
    const c10::SymInt& horizon,
    const std::optional<at::Tensor>& offsets);

}  // namespace hyenarec::detail
