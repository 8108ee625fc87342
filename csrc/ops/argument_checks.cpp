#include "argument_checks.h"

#include <c10/util/Exception.h>

namespace hyenarec::detail {

void check_activation_type(const Argument& argument) {
  const auto type = argument.tensor.scalar_type();
  TORCH_CHECK(
      type == c10::kFloat || type == c10::kDouble || type == c10::kBFloat16 || type == c10::kHalf,
      argument.op, ": ", argument.name, " must be float32, float64, bfloat16 or float16, got ", type);
}

void check_cpu_activation_type(const Argument& argument) {
  TORCH_CHECK(
      argument.tensor.scalar_type() != c10::kHalf, argument.op, ": ", argument.name,
      " must be float32, float64 or bfloat16 on the CPU, got ", argument.tensor.scalar_type());
}

void check_type(const Argument& argument, c10::ScalarType expected, const char* why) {
  const auto type = argument.tensor.scalar_type();
  TORCH_CHECK(
      type == expected, argument.op, ": ", argument.name, " must be ", expected, *why ? " " : "", why,
      ", got ", type);
}

void check_device(const Argument& argument, const Argument& other) {
  TORCH_CHECK(
      argument.tensor.device() == other.tensor.device(), argument.op, ": ", argument.name, " must be on ",
      other.tensor.device(), " like ", other.name, ", got ", argument.tensor.device());
}

void check_rank(const Argument& argument, int64_t rank, const char* layout) {
  TORCH_CHECK(
      argument.tensor.dim() == rank, argument.op, ": ", argument.name, " must be ", layout, ", got ",
      argument.tensor.sym_sizes());
}

void check_size(
    const Argument& argument,
    int64_t dim,
    const c10::SymInt& expected,
    const char* layout,
    const char* symbol) {
  TORCH_SYM_CHECK(
      argument.tensor.sym_size(dim).sym_eq(expected), argument.op, ": ", argument.name, " must be ", layout,
      " with ", symbol, " = ", expected, ", got ", argument.tensor.sym_sizes());
}

void check_like(const Argument& argument, const Argument& other) {
  TORCH_CHECK(
      argument.tensor.dim() == other.tensor.dim(), argument.op, ": ", argument.name,
      " must have the shape of ", other.name, ", ", other.tensor.sym_sizes(), ", got ",
      argument.tensor.sym_sizes());
  for (int64_t dim = 0; dim < other.tensor.dim(); ++dim) {
    TORCH_SYM_CHECK(
        argument.tensor.sym_size(dim).sym_eq(other.tensor.sym_size(dim)), argument.op, ": ", argument.name,
        " must have the shape of ", other.name, ", ", other.tensor.sym_sizes(), ", got ",
        argument.tensor.sym_sizes());
  }
  TORCH_CHECK(
      argument.tensor.scalar_type() == other.tensor.scalar_type(), argument.op, ": ", argument.name,
      " must be ", other.tensor.scalar_type(), " like ", other.name, ", got ", argument.tensor.scalar_type());
  check_device(argument, other);
}

}  // namespace hyenarec::detail
