#include "legendre_kernel.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../common/argument_checks.h"
#include "../common/operators.h"
#include "arguments.h"

namespace hyenarec {

at::Tensor legendre_kernel(
    const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon, c10::SymInt length) {
  static const auto op = detail::find_operator<decltype(legendre_kernel)>("legendre_kernel");
  return op.call(coeffs, decay, std::move(horizon), std::move(length));
}

std::tuple<at::Tensor, at::Tensor> legendre_kernel_backward(
    const at::Tensor& grad, const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon) {
  static const auto op =
      detail::find_operator<decltype(legendre_kernel_backward)>("legendre_kernel_backward");
  return op.call(grad, coeffs, decay, std::move(horizon));
}

namespace detail {
namespace {

void check_parameters(
    const char* op, const at::Tensor& coeffs, const at::Tensor& decay, const c10::SymInt& horizon) {
  const Argument coeffs_argument{op, "coeffs", coeffs};
  const Argument decay_argument{op, "decay", decay};
  const auto type = coeffs.scalar_type();
  TORCH_CHECK(
      type == c10::kFloat || type == c10::kDouble, op, ": coeffs must be float32 or float64, got ", type);
  check_rank(coeffs_argument, 2, "[D, N]");
  check_rank(decay_argument, 1, "[D]");
  check_size(decay_argument, 0, coeffs.sym_size(0), "[D]", "D");
  check_type(decay_argument, type, "like coeffs");
  check_device(decay_argument, coeffs_argument);
  check_horizon(op, horizon);
}

void check_length(const char* op, const c10::SymInt& length, const c10::SymInt& horizon) {
  TORCH_SYM_CHECK(length.sym_ge(0), op, ": length must be at least 0, got ", length);
  TORCH_SYM_CHECK(
      length.sym_le(horizon), op, ": length must be at most the horizon = ", horizon, ", got ", length);
}

}  // namespace

void check_legendre_kernel_arguments(
    const at::Tensor& coeffs, const at::Tensor& decay, const c10::SymInt& horizon,
    const c10::SymInt& length) {
  check_parameters("legendre_kernel", coeffs, decay, horizon);
  check_length("legendre_kernel", length, horizon);
}

void check_legendre_kernel_backward_arguments(
    const at::Tensor& grad, const at::Tensor& coeffs, const at::Tensor& decay, const c10::SymInt& horizon) {
  const char* op = "legendre_kernel_backward";
  check_parameters(op, coeffs, decay, horizon);
  const Argument grad_argument{op, "grad", grad};
  check_rank(grad_argument, 2, "[D, length]");
  check_size(grad_argument, 0, coeffs.sym_size(0), "[D, length]", "D");
  check_type(grad_argument, coeffs.scalar_type(), "like coeffs");
  check_device(grad_argument, {op, "coeffs", coeffs});
  check_length(op, grad.sym_size(1), horizon);
}

}  // namespace detail

namespace {

at::Tensor legendre_kernel_meta(
    const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon, c10::SymInt length) {
  detail::check_legendre_kernel_arguments(coeffs, decay, horizon, length);
  return at::empty_symint({coeffs.sym_size(0), std::move(length)}, coeffs.options());
}

std::tuple<at::Tensor, at::Tensor> legendre_kernel_backward_meta(
    const at::Tensor& grad, const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon) {
  detail::check_legendre_kernel_backward_arguments(grad, coeffs, decay, horizon);
  return {
      at::empty_symint(coeffs.sym_sizes(), coeffs.options()),
      at::empty_symint(decay.sym_sizes(), decay.options())};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_FRAGMENT(hyenarec, m) {
  m.def("legendre_kernel(Tensor coeffs, Tensor decay, SymInt horizon, SymInt length) -> Tensor");
  m.def(
      "legendre_kernel_backward(Tensor grad, Tensor coeffs, Tensor decay, SymInt horizon) -> (Tensor, "
      "Tensor)");
}
TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("legendre_kernel", hyenarec::legendre_kernel_meta);
  m.impl("legendre_kernel_backward", hyenarec::legendre_kernel_backward_meta);
}
