#include "argument_checks.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <string>

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
    const Argument& argument, int64_t dim, const c10::SymInt& expected, const char* layout,
    const char* symbol) {
  TORCH_SYM_CHECK(
      argument.tensor.sym_size(dim).sym_eq(expected), argument.op, ": ", argument.name, " must be ", layout,
      " with ", symbol, " = ", expected, ", got ", argument.tensor.sym_sizes());
}

void check_shape(const Argument& argument, const Argument& other) {
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
}

void check_like(const Argument& argument, const Argument& other) {
  check_shape(argument, other);
  const auto why = std::string("like ") + other.name;
  check_type(argument, other.tensor.scalar_type(), why.c_str());
  check_device(argument, other);
}

void check_parameter(
    const Argument& parameter, int64_t rank, const c10::SymInt& channels, const char* layout,
    const char* symbol, const Argument& activation) {
  check_rank(parameter, rank, layout);
  check_size(parameter, 0, channels, layout, symbol);
  const auto why = std::string("beside this ") + activation.name;
  check_type(parameter, parameter_type(activation.tensor.scalar_type()), why.c_str());
  check_device(parameter, activation);
}

void check_kernel_parameters(
    const char* op, const at::Tensor& coeffs, const at::Tensor& decay, const std::optional<at::Tensor>& skip,
    const c10::SymInt& horizon) {
  const auto type = coeffs.scalar_type();
  TORCH_CHECK(
      type == c10::kFloat || type == c10::kDouble, op, ": coeffs must be float32 or float64, got ", type);
  check_rank({op, "coeffs", coeffs}, 2, "[D, N]");
  const auto check_channels = [&](const Argument& parameter) {
    check_rank(parameter, 1, "[D]");
    check_size(parameter, 0, coeffs.sym_size(0), "[D]", "D");
    check_type(parameter, type, "like coeffs");
    check_device(parameter, {op, "coeffs", coeffs});
  };
  check_channels({op, "decay", decay});
  if (skip) check_channels({op, "skip", *skip});
  check_horizon(op, horizon);
}

void check_sequences(
    const Argument& activation, const std::optional<at::Tensor>& offsets, const char* padded,
    const char* packed) {
  if (!offsets) {
    check_rank(activation, 3, (std::string(padded) + " when no offsets are given").c_str());
    return;
  }
  check_rank(activation, 2, (std::string(packed) + " when offsets are given").c_str());
  const Argument offsets_argument{activation.op, "offsets", *offsets};
  check_rank(offsets_argument, 1, "[S + 1]");
  check_type(offsets_argument, c10::kLong, "");
  check_device(offsets_argument, activation);
  TORCH_SYM_CHECK(
      offsets->sym_size(0).sym_ge(1), activation.op, ": offsets must be [S + 1] with S >= 0, got ",
      offsets->sym_sizes());
}

void check_horizon(const char* op, const c10::SymInt& horizon) {
  TORCH_SYM_CHECK(horizon.sym_ge(1), op, ": horizon must be at least 1, got ", horizon);
}

void check_sequences_within(
    const c10::SymInt& horizon, const Argument& activation, const std::optional<at::Tensor>& offsets,
    const char* padded, const char* packed) {
  check_sequences(activation, offsets, padded, packed);
  check_horizon(activation.op, horizon);
  if (offsets) return;
  TORCH_SYM_CHECK(
      activation.tensor.sym_size(1).sym_le(horizon), activation.op, ": ", activation.name, " must be ",
      padded, " with L at most the horizon = ", horizon, ", got ", activation.tensor.sym_sizes());
}

at::Tensor empty_gradient(bool needed, const at::Tensor& argument, std::optional<at::ScalarType> dtype) {
  const auto options = argument.options().dtype(dtype.value_or(argument.scalar_type()));
  return needed ? at::empty_symint(argument.sym_sizes(), options) : at::empty({0}, options);
}

void check_decay_values(const char* op, const at::Tensor& decay) {
  AT_DISPATCH_FLOATING_TYPES(decay.scalar_type(), "decay", [&] {
    const auto contiguous = decay.contiguous();
    const auto* values = contiguous.const_data_ptr<scalar_t>();
    for (int64_t d = 0; d < decay.size(0); ++d) {
      TORCH_CHECK(
          std::isfinite(values[d]) && values[d] >= 0, op, ": decay must be finite and not negative, got ",
          values[d], " for channel ", d);
    }
  });
}

}  // namespace hyenarec::detail
