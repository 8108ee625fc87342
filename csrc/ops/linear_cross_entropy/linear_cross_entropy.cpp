#include "linear_cross_entropy.h"

#include <ATen/ops/clamp_min.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ge.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include "../common/argument_checks.h"
#include "arguments.h"

namespace hyenarec {

at::Tensor linear_cross_entropy(
    const at::Tensor& hidden, const at::Tensor& weight, const OptionalTensor& bias, const at::Tensor& target,
    const OptionalTensor& candidates, const OptionalTensor& log_q, double label_smoothing,
    c10::string_view reduction) {
  static const auto op = detail::find_operator<decltype(linear_cross_entropy)>("linear_cross_entropy");
  return op.call(hidden, weight, bias, target, candidates, log_q, label_smoothing, reduction);
}

LossesAndGradients linear_cross_entropy_with_gradients(const CrossEntropyGradientArguments& arguments) {
  static const auto op =
      detail::find_operator<LinearCrossEntropyWithGradients>("linear_cross_entropy_with_gradients");
  return arguments.losses.apply(
      [&](const auto&... losses) { return op.call(losses..., arguments.needs_grad); });
}

LinearCrossEntropyGradients linear_cross_entropy_backward(const CrossEntropyBackwardArguments& arguments) {
  static const auto op = detail::find_operator<LinearCrossEntropyBackward>("linear_cross_entropy_backward");
  return arguments.losses.apply(
      [&](const auto&... losses) { return op.call(arguments.grad, losses..., arguments.needs_grad); });
}

namespace detail {
namespace {

// A vector of V numbers, or of M or K indices.
void check_vector(
    const Argument& vector, const c10::SymInt& size, const char* layout, const char* symbol,
    const Argument& hidden) {
  check_rank(vector, 1, layout);
  check_size(vector, 0, size, layout, symbol);
  check_device(vector, hidden);
}

// In 16 bits like hidden, or in the type that is right beside any hidden.
void check_bias_type(const Argument& bias, c10::ScalarType hidden) {
  if (bias.tensor.scalar_type() == hidden) return;
  check_type(
      bias, parameter_type(hidden), hidden == parameter_type(hidden) ? "like hidden" : "or like hidden");
}

}  // namespace

void check_cross_entropy_arguments(const CrossEntropyArguments& arguments) {
  const char* op = "linear_cross_entropy";
  const Argument hidden{op, "hidden", arguments.hidden}, weight{op, "weight", arguments.weight};
  check_activation_type(hidden);
  check_rank(hidden, 2, "[M, D]");
  check_rank(weight, 2, "[V, D]");
  check_size(weight, 1, arguments.hidden.sym_size(1), "[V, D]", "D");
  check_type(weight, arguments.hidden.scalar_type(), "like hidden");
  check_device(weight, hidden);
  const auto items = arguments.weight.sym_size(0);
  TORCH_SYM_CHECK(
      items.sym_ge(1), op, ": weight must be [V, D] with V >= 1, got ", arguments.weight.sym_sizes());
  if (arguments.bias) {
    const Argument bias{op, "bias", *arguments.bias};
    check_vector(bias, items, "[V]", "V", hidden);
    check_bias_type(bias, arguments.hidden.scalar_type());
  }
  const Argument target{op, "target", arguments.target};
  check_vector(target, arguments.hidden.sym_size(0), "[M]", "M", hidden);
  check_type(target, c10::kLong, "");
  if (arguments.candidates) {
    const Argument candidates{op, "candidates", *arguments.candidates};
    check_rank(candidates, 1, "[K]");
    check_type(candidates, c10::kLong, "");
    check_device(candidates, hidden);
  }
  if (arguments.log_q) {
    TORCH_CHECK(
        arguments.candidates, op, ": log_q must be absent without candidates, got ",
        arguments.log_q->sym_sizes());
    const Argument log_q{op, "log_q", *arguments.log_q};
    check_vector(log_q, items, "[V]", "V", hidden);
    check_type(log_q, parameter_type(arguments.hidden.scalar_type()), "beside this hidden");
  }
  TORCH_CHECK(
      arguments.label_smoothing >= 0 && arguments.label_smoothing <= 1, op,
      ": label_smoothing must be in [0, 1], got ", arguments.label_smoothing);
}

void check_cross_entropy_backward_arguments(const CrossEntropyBackwardArguments& arguments) {
  check_cross_entropy_arguments(arguments.losses);
  const char* op = "linear_cross_entropy_backward";
  const Argument grad{op, "grad", arguments.grad}, hidden{op, "hidden", arguments.losses.hidden};
  check_vector(grad, hidden.tensor.sym_size(0), "[M]", "M", hidden);
  check_type(grad, parameter_type(hidden.tensor.scalar_type()), "beside this hidden");
}

void check_reduction(c10::string_view reduction) {
  TORCH_CHECK(
      reduction == "none" || reduction == "sum" || reduction == "mean",
      "linear_cross_entropy: reduction must be 'none', 'sum' or 'mean', got '", reduction, "'");
}

at::Tensor number_of_targets(const at::Tensor& target) { return target.ge(0).sum().clamp_min(1); }

at::Tensor reduce_losses(const at::Tensor& losses, const at::Tensor& target, c10::string_view reduction) {
  if (reduction == "none") return losses;
  const auto sum = losses.sum(at::kDouble);
  return (reduction == "sum" ? sum : sum.div(number_of_targets(target))).to(losses.scalar_type());
}

}  // namespace detail

namespace {

// For every backend: the reduction of what the backend's kernel computes.
at::Tensor reduced_losses(const LinearCrossEntropyArguments& arguments) {
  detail::check_reduction(arguments.reduction);
  const auto losses =
      std::get<0>(linear_cross_entropy_with_gradients({arguments.losses, {false, false, false}}));
  return detail::reduce_losses(losses, arguments.losses.target, arguments.reduction);
}

LossesAndGradients with_gradients_meta(const CrossEntropyGradientArguments& arguments) {
  const auto& [hidden, weight, bias, target, candidates, log_q, label_smoothing] = arguments.losses;
  const auto& needs_grad = arguments.needs_grad;
  detail::check_cross_entropy_arguments(arguments.losses);
  const auto type = detail::parameter_type(hidden.scalar_type());
  using detail::empty_gradient;
  return {
      at::empty_symint(target.sym_sizes(), hidden.options().dtype(type)),
      empty_gradient(needs_grad[0], hidden), empty_gradient(needs_grad[1], weight, type),
      empty_gradient(needs_grad[2] && bias, bias.value_or(weight), type)};
}

LinearCrossEntropyGradients backward_meta(const CrossEntropyBackwardArguments& arguments) {
  const auto& [hidden, weight, bias, target, candidates, log_q, label_smoothing] = arguments.losses;
  const auto& needs_grad = arguments.needs_grad;
  detail::check_cross_entropy_backward_arguments(arguments);
  using detail::empty_gradient;
  return {
      empty_gradient(needs_grad[0], hidden), empty_gradient(needs_grad[1], weight),
      empty_gradient(needs_grad[2] && bias, bias.value_or(weight))};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(hyenarec, m) {
  m.def(
      "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? "
      "candidates=None, Tensor? log_q=None, float label_smoothing=0., str reduction=\"mean\") -> Tensor");
  m.def(
      "linear_cross_entropy_with_gradients(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, "
      "Tensor? candidates, Tensor? log_q, float label_smoothing, bool[3] needs_grad) -> (Tensor, Tensor, "
      "Tensor, Tensor)");
  m.def(
      "linear_cross_entropy_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor? bias, Tensor target, "
      "Tensor? candidates, Tensor? log_q, float label_smoothing, bool[3] needs_grad) -> (Tensor, Tensor, "
      "Tensor)");
}
TORCH_LIBRARY_IMPL(hyenarec, CompositeExplicitAutograd, m) {
  m.impl("linear_cross_entropy", detail::unpacked<decltype(linear_cross_entropy), reduced_losses>);
}
TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl(
      "linear_cross_entropy_with_gradients",
      detail::unpacked<LinearCrossEntropyWithGradients, with_gradients_meta>);
  m.impl("linear_cross_entropy_backward", detail::unpacked<LinearCrossEntropyBackward, backward_meta>);
}

}  // namespace hyenarec
