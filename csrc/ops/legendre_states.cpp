#include "legendre_states.h"

#include <ATen/ops/empty.h>

#include <array>

#include "argument_checks.h"
#include "cpu/section_tables.h"
#include "legendre_tables.h"

namespace hyenarec::detail {
namespace {

using Shape = std::array<c10::SymInt, 3>;

Shape shape_of_states(
    const at::Tensor& activations,
    const at::Tensor& coeffs,
    const c10::SymInt& horizon,
    const std::optional<at::Tensor>& offsets) {
  // Of the shortest sections that there are: how long they really are depends on the horizon, and must not, where
  // sizes are symbols.
  const int64_t chunk = legendre_chunk_length(coeffs.sym_size(1).guard_int(__FILE__, __LINE__));
  const c10::SymInt section = kLeastSectionChunks * chunk;
  const auto first = activations.sym_size(0);
  auto rows = offsets
                  ? first / section * ((horizon - 1) / section).min(1)  // 0 if none is longer than a section
                  : first * ((activations.sym_size(1).max(1) - 1) / section);
  return {std::move(rows), coeffs.sym_size(1), coeffs.sym_size(0)};
}

}  // namespace

at::Tensor empty_legendre_states(
    const at::Tensor& activations,
    const at::Tensor& coeffs,
    const c10::SymInt& horizon,
    const std::optional<at::Tensor>& offsets) {
  return at::empty_symint(shape_of_states(activations, coeffs, horizon, offsets), coeffs.options());
}

void check_legendre_states(
    const char* op,
    const at::Tensor& states,
    const at::Tensor& activations,
    const at::Tensor& coeffs,
    const c10::SymInt& horizon,
    const std::optional<at::Tensor>& offsets) {
  const Argument argument{op, "states", states};
  check_rank(argument, 3, "[rows, N, D]");
  const Shape shape = shape_of_states(activations, coeffs, horizon, offsets);
  const char* symbols[] = {"rows", "N", "D"};
  for (int64_t dim = 0; dim < 3; ++dim) check_size(argument, dim, shape[dim], "[rows, N, D]", symbols[dim]);
  check_type(argument, coeffs.scalar_type(), "like coeffs");
  check_device(argument, {op, "coeffs", coeffs});
}

}  // namespace hyenarec::detail
