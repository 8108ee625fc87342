#include "dropout_add_layer_norm.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>
#include <torch/library.h>

#include <cmath>

#include "../common/argument_checks.h"
#include "philox.h"

namespace hyenarec {

std::tuple<at::Tensor, at::Tensor> dropout_add_layer_norm(
    const at::Tensor& branch,
    const std::optional<at::Tensor>& residual,
    const at::Tensor& weight,
    const at::Tensor& bias,
    double p,
    double eps,
    const std::optional<at::Tensor>& seed) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("hyenarec::dropout_add_layer_norm", "")
                             .typed<decltype(dropout_add_layer_norm)>();
  return op.call(branch, residual, weight, bias, p, eps, seed);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> dropout_add_layer_norm_with_statistics(
    const at::Tensor& branch,
    const std::optional<at::Tensor>& residual,
    const at::Tensor& weight,
    const at::Tensor& bias,
    double p,
    double eps,
    const std::optional<at::Tensor>& seed) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("hyenarec::dropout_add_layer_norm_with_statistics", "")
                             .typed<decltype(dropout_add_layer_norm_with_statistics)>();
  return op.call(branch, residual, weight, bias, p, eps, seed);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> dropout_add_layer_norm_backward(
    const std::optional<at::Tensor>& grad_normed,
    const std::optional<at::Tensor>& grad_sum,
    const at::Tensor& sum,
    const at::Tensor& mean,
    const at::Tensor& rstd,
    const at::Tensor& weight,
    double p,
    const std::optional<at::Tensor>& seed,
    at::ScalarType branch_dtype,
    std::array<bool, 4> needs_grad) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("hyenarec::dropout_add_layer_norm_backward", "")
                             .typed<decltype(dropout_add_layer_norm_backward)>();
  return op.call(grad_normed, grad_sum, sum, mean, rstd, weight, p, seed, branch_dtype, needs_grad);
}

namespace detail {
namespace {

void check_rows(const Argument& rows) {
  check_activation_type(rows);
  TORCH_CHECK(
      rows.tensor.dim() >= 1, rows.op, ": ", rows.name, " must be [.., D], got ", rows.tensor.sym_sizes());
  TORCH_SYM_CHECK(
      rows.tensor.sym_size(-1).sym_ge(1), rows.op, ": ", rows.name, " must be [.., D] with D >= 1, got ",
      rows.tensor.sym_sizes());
}

// weight or bias, in the type that is right beside any sum or in 16 bits like it.
void check_vector(const Argument& vector, const Argument& rows, c10::ScalarType sum) {
  check_rank(vector, 1, "[D]");
  check_size(vector, 0, rows.tensor.sym_size(-1), "[D]", "D");
  check_device(vector, rows);
  const auto type = parameter_type(sum);
  if (vector.tensor.scalar_type() != sum)
    check_type(vector, type, sum == type ? "like the sum" : "or like the sum");
}

void check_dropout(const Argument& rows, double p, const std::optional<at::Tensor>& seed) {
  TORCH_CHECK(p >= 0 && p <= 1, rows.op, ": p must be in [0, 1], got ", p);
  TORCH_CHECK(p == 0 || seed, rows.op, ": seed must be an int64 scalar for p = ", p, ", got none");
  if (!seed) return;
  const Argument seed_argument{rows.op, "seed", *seed};
  check_rank(seed_argument, 0, "a scalar, []");
  check_type(seed_argument, c10::kLong, "");
  check_device(seed_argument, rows);
}

}  // namespace

void check_dropout_add_layer_norm_arguments(
    const at::Tensor& branch,
    const std::optional<at::Tensor>& residual,
    const at::Tensor& weight,
    const at::Tensor& bias,
    double p,
    double eps,
    const std::optional<at::Tensor>& seed) {
  const char* op = "dropout_add_layer_norm";
  const Argument rows{op, "branch", branch};
  check_rows(rows);
  if (residual) {
    const Argument residual_argument{op, "residual", *residual};
    check_activation_type(residual_argument);
    check_shape(residual_argument, rows);
    check_device(residual_argument, rows);
  }
  const auto type = type_of_sum(branch, residual);
  check_vector({op, "weight", weight}, rows, type);
  check_vector({op, "bias", bias}, rows, type);
  TORCH_CHECK(eps >= 0, op, ": eps must be at least 0, got ", eps);
  check_dropout(rows, p, seed);
}

void check_dropout_add_layer_norm_backward_arguments(
    const std::optional<at::Tensor>& grad_normed,
    const std::optional<at::Tensor>& grad_sum,
    const at::Tensor& sum,
    const at::Tensor& mean,
    const at::Tensor& rstd,
    const at::Tensor& weight,
    double p,
    const std::optional<at::Tensor>& seed) {
  const char* op = "dropout_add_layer_norm_backward";
  const Argument rows{op, "sum", sum};
  check_rows(rows);
  if (grad_normed) check_like({op, "grad_normed", *grad_normed}, rows);
  if (grad_sum) check_like({op, "grad_sum", *grad_sum}, rows);
  const auto of_rows = sum.select(-1, 0);  // [..], as one number a row is laid out
  for (const Argument& statistic : {Argument{op, "mean", mean}, Argument{op, "rstd", rstd}}) {
    check_shape(statistic, {op, "sum[.., 0]", of_rows});
    check_type(statistic, parameter_type(sum.scalar_type()), "beside this sum");
    check_device(statistic, rows);
  }
  check_vector({op, "weight", weight}, rows, sum.scalar_type());
  check_dropout(rows, p, seed);
}

at::ScalarType type_of_sum(const at::Tensor& branch, const std::optional<at::Tensor>& residual) {
  return residual ? c10::promoteTypes(branch.scalar_type(), residual->scalar_type()) : branch.scalar_type();
}

at::ScalarType kernel_type_of_branch(at::ScalarType branch, at::ScalarType sum) {
  return sum == at::kFloat && c10::isReducedFloatingType(branch) ? branch : sum;
}

DropoutLevels::DropoutLevels(double p)
    : dropped(static_cast<uint32_t>(std::nearbyint(p * kNumLevels))),
      scale(dropped == kNumLevels ? 0.0 : kNumLevels / (kNumLevels - static_cast<double>(dropped))) {}

}  // namespace detail

namespace {

std::tuple<at::Tensor, at::Tensor> without_statistics(
    const at::Tensor& branch,
    const std::optional<at::Tensor>& residual,
    const at::Tensor& weight,
    const at::Tensor& bias,
    double p,
    double eps,
    const std::optional<at::Tensor>& seed) {
  auto [normed, sum, mean, rstd] =
      dropout_add_layer_norm_with_statistics(branch, residual, weight, bias, p, eps, seed);
  return {normed, sum};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> with_statistics_meta(
    const at::Tensor& branch,
    const std::optional<at::Tensor>& residual,
    const at::Tensor& weight,
    const at::Tensor& bias,
    double p,
    double eps,
    const std::optional<at::Tensor>& seed) {
  detail::check_dropout_add_layer_norm_arguments(branch, residual, weight, bias, p, eps, seed);
  const auto type = detail::type_of_sum(branch, residual);
  const auto rows = branch.sym_sizes().slice(0, branch.dim() - 1);
  const auto make = [&](c10::SymIntArrayRef sizes, at::ScalarType dtype) {
    return at::empty_symint(sizes, branch.options().dtype(dtype));
  };
  return {
      make(branch.sym_sizes(), type), make(branch.sym_sizes(), type),
      make(rows, detail::parameter_type(type)), make(rows, detail::parameter_type(type))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_meta(
    const std::optional<at::Tensor>& grad_normed,
    const std::optional<at::Tensor>& grad_sum,
    const at::Tensor& sum,
    const at::Tensor& mean,
    const at::Tensor& rstd,
    const at::Tensor& weight,
    double p,
    const std::optional<at::Tensor>& seed,
    at::ScalarType branch_dtype,
    std::array<bool, 4> needs_grad) {
  detail::check_dropout_add_layer_norm_backward_arguments(
      grad_normed, grad_sum, sum, mean, rstd, weight, p, seed);
  using detail::empty_gradient;
  return {
      empty_gradient(needs_grad[0], sum, branch_dtype), empty_gradient(needs_grad[1], sum),
      empty_gradient(needs_grad[2], weight), empty_gradient(needs_grad[3], weight)};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, CompositeExplicitAutograd, m) {
  m.impl("dropout_add_layer_norm", hyenarec::without_statistics);
}
TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("dropout_add_layer_norm_with_statistics", hyenarec::with_statistics_meta);
  m.impl("dropout_add_layer_norm_backward", hyenarec::backward_meta);
}
