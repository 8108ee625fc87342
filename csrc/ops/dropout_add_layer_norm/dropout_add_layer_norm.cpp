#include "dropout_add_layer_norm.h"

#include "arguments.h"

namespace hyenarec {

std::tuple<at::Tensor, at::Tensor> dropout_add_layer_norm(
    const at::Tensor& branch, const OptionalTensor& residual, const at::Tensor& weight,
    const at::Tensor& bias, double p, double eps, const OptionalTensor& seed) {
  return detail::dispatch<"dropout_add_layer_norm", Tensors<2>, DropoutAddLayerNormArguments>(
      {branch, residual, weight, bias, p, eps, seed});
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

void check_dropout(const Argument& rows, double p, const OptionalTensor& seed) {
  TORCH_CHECK(p >= 0 && p <= 1, rows.op, ": p must be in [0, 1], got ", p);
  TORCH_CHECK(p == 0 || seed, rows.op, ": seed must be an int64 scalar for p = ", p, ", got none");
  if (!seed) return;
  const Argument seed_argument{rows.op, "seed", *seed};
  check_rank(seed_argument, 0, "a scalar, []");
  check_type(seed_argument, c10::kLong, "");
  check_device(seed_argument, rows);
}

}  // namespace
}  // namespace detail

void DropoutAddLayerNormArguments::check() const {
  using namespace detail;
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

void DropoutAddLayerNormBackwardArguments::check() const {
  using namespace detail;
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

at::ScalarType detail::type_of_sum(const at::Tensor& branch, const OptionalTensor& residual) {
  return residual ? c10::promoteTypes(branch.scalar_type(), residual->scalar_type()) : branch.scalar_type();
}

TORCH_LIBRARY_FRAGMENT(hyenarec, m) {
  m.def(
      "dropout_add_layer_norm(Tensor branch, Tensor? residual, Tensor weight, Tensor bias, float p=0., float "
      "eps=1e-05, Tensor? seed=None) -> (Tensor, Tensor)");
  m.def(
      "dropout_add_layer_norm_with_statistics(Tensor branch, Tensor? residual, Tensor weight, Tensor bias, "
      "float p, float eps, Tensor? seed) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "dropout_add_layer_norm_backward(Tensor? grad_normed, Tensor? grad_sum, Tensor sum, Tensor mean, "
      "Tensor rstd, Tensor weight, float p, Tensor? seed, ScalarType branch_dtype, bool[4] needs_grad) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

static Tensors<2> without_statistics(const DropoutAddLayerNormArguments& arguments) {
  const auto [normed, sum, mean, rstd] = dropout_add_layer_norm_with_statistics(arguments);
  return {normed, sum};
}

static Tensors<4> with_statistics_meta(const DropoutAddLayerNormArguments& arguments) {
  const auto& branch = arguments.branch;
  const auto type = detail::type_of_sum(branch, arguments.residual);
  const auto rows = branch.sym_sizes().slice(0, branch.dim() - 1);
  const auto make = [&](c10::SymIntArrayRef sizes, at::ScalarType dtype) {
    return at::empty_symint(sizes, branch.options().dtype(dtype));
  };
  return {
      make(branch.sym_sizes(), type), make(branch.sym_sizes(), type),
      make(rows, detail::parameter_type(type)), make(rows, detail::parameter_type(type))};
}

static Tensors<4> backward_meta(const DropoutAddLayerNormBackwardArguments& arguments) {
  const auto& needs_grad = arguments.needs_grad;
  using detail::empty_gradient;
  return {
      empty_gradient(needs_grad[0], arguments.sum, arguments.branch_dtype),
      empty_gradient(needs_grad[1], arguments.sum), empty_gradient(needs_grad[2], arguments.weight),
      empty_gradient(needs_grad[3], arguments.weight)};
}

TORCH_LIBRARY_IMPL(hyenarec, CompositeExplicitAutograd, m) {
  m.impl("dropout_add_layer_norm", detail::unchecked<without_statistics>);
}
TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("dropout_add_layer_norm_with_statistics", detail::checked<with_statistics_meta>);
  m.impl("dropout_add_layer_norm_backward", detail::checked<backward_meta>);
}

}  // namespace hyenarec
