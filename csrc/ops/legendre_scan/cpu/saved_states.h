// The states that a forward pass of the Legendre scan on the CPU saves for its backward pass: those carried
// from segment to segment (see segment_tables.h). From them the backward pass finds the states of a segment's
// chunks when it gets there, and needn't walk the whole history before. The backward pass on CUDA computes
// its own.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>

namespace hyenarec::detail {

// Room for them, [rows, N, D] in coeffs' dtype, a sequence's one after another. `activations` are [B, L,
// ...], or packed [total, ...] with offsets. There are more rows than states, whose number depends on the
// values of horizon and offsets: two, and one for each 256 events (N <= 9) or 512 events.
at::Tensor empty_legendre_states(
    const at::Tensor& activations, const at::Tensor& coeffs, const c10::SymInt& horizon,
    const std::optional<at::Tensor>& offsets);

// Throws unless `states` could be what empty_legendre_states gave.
void check_legendre_states(
    const char* op, const at::Tensor& states, const at::Tensor& activations, const at::Tensor& coeffs,
    const c10::SymInt& horizon, const std::optional<at::Tensor>& offsets);

}  // namespace hyenarec::detail
