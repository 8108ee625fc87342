#include "legendre_conv.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../common/argument_checks.h"
#include "../legendre_scan/cpu/saved_states.h"
#include "arguments.h"

namespace hyenarec {

at::Tensor legendre_conv(
    const at::Tensor& u, const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon,
    const OptionalTensor& skip, const OptionalTensor& pre_gate, const OptionalTensor& post_gate,
    const OptionalTensor& offsets) {
  static const auto op = detail::find_operator<LegendreConvSignature>("legendre_conv");
  return op.call(u, coeffs, decay, std::move(horizon), skip, pre_gate, post_gate, offsets);
}

std::tuple<at::Tensor, at::Tensor> legendre_conv_with_states(const LegendreConvArguments& arguments) {
  static const auto op = detail::find_operator<LegendreConvWithStates>("legendre_conv_with_states");
  return arguments.apply([](const auto&... each) { return op.call(each...); });
}

LegendreConvGradients legendre_conv_backward(const LegendreConvBackwardArguments& arguments) {
  static const auto op = detail::find_operator<LegendreConvBackward>("legendre_conv_backward");
  return arguments.forward.apply([&](const auto&... each) {
    return op.call(arguments.grad, each..., arguments.needs_grad, arguments.states);
  });
}

namespace detail {
namespace {

void check_arguments(const char* op, const LegendreConvArguments& arguments) {
  const auto& [u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets] = arguments;
  const Argument u_argument{op, "u", u};
  check_activation_type(u_argument);
  check_sequences(u_argument, offsets, "[B, L, D]", "[total, D]");
  check_horizon(op, horizon);
  if (!offsets) check_padded_length(u_argument, horizon, "[B, L, D]");
  const auto channels = u.sym_size(-1);
  check_parameter({op, "coeffs", coeffs}, 2, channels, "[D, N]", "D", u_argument);
  check_parameter({op, "decay", decay}, 1, channels, "[D]", "D", u_argument);
  if (skip) check_parameter({op, "skip", *skip}, 1, channels, "[D]", "D", u_argument);
  if (pre_gate) check_like({op, "pre_gate", *pre_gate}, u_argument);
  if (post_gate) check_like({op, "post_gate", *post_gate}, u_argument);
}

}  // namespace

void check_legendre_conv_arguments(const LegendreConvArguments& arguments) {
  check_arguments("legendre_conv", arguments);
}

void check_legendre_conv_backward_arguments(const LegendreConvBackwardArguments& arguments) {
  const char* op = "legendre_conv_backward";
  const auto& [grad, forward, needs_grad, states] = arguments;
  check_arguments(op, forward);
  check_like({op, "grad", grad}, {op, "u", forward.u});
  if (states) check_legendre_states(op, *states, forward.u, forward.coeffs, forward.horizon, forward.offsets);
}

}  // namespace detail

namespace {

at::Tensor legendre_conv_meta(const LegendreConvArguments& arguments) {
  detail::check_legendre_conv_arguments(arguments);
  return at::empty_symint(arguments.u.sym_sizes(), arguments.u.options());
}

std::tuple<at::Tensor, at::Tensor> legendre_conv_with_states_meta(const LegendreConvArguments& arguments) {
  const auto& [u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets] = arguments;
  return {legendre_conv_meta(arguments), detail::empty_legendre_states(u, coeffs, horizon, offsets)};
}

LegendreConvGradients legendre_conv_backward_meta(const LegendreConvBackwardArguments& arguments) {
  detail::check_legendre_conv_backward_arguments(arguments);
  const auto& [u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets] = arguments.forward;
  const auto& needs_grad = arguments.needs_grad;
  return {
      detail::empty_gradient(needs_grad[0], u),
      detail::empty_gradient(needs_grad[1], coeffs),
      detail::empty_gradient(needs_grad[2], decay),
      detail::empty_gradient(needs_grad[3] && skip, decay),
      detail::empty_gradient(needs_grad[4] && pre_gate, u),
      detail::empty_gradient(needs_grad[5] && post_gate, u)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(hyenarec, m) {
  m.def(
      "legendre_conv(Tensor u, Tensor coeffs, Tensor decay, SymInt horizon, Tensor? skip=None, Tensor? "
      "pre_gate=None, Tensor? post_gate=None, Tensor? offsets=None) -> Tensor");
  m.def(
      "legendre_conv_with_states(Tensor u, Tensor coeffs, Tensor decay, SymInt horizon, Tensor? skip, "
      "Tensor? pre_gate, Tensor? post_gate, Tensor? offsets) -> (Tensor, Tensor)");
  m.def(
      "legendre_conv_backward(Tensor grad, Tensor u, Tensor coeffs, Tensor decay, SymInt horizon, Tensor? "
      "skip, Tensor? pre_gate, Tensor? post_gate, Tensor? offsets, bool[6] needs_grad, Tensor? states=None) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("legendre_conv", detail::unpacked<LegendreConvSignature, legendre_conv_meta>);
  m.impl(
      "legendre_conv_with_states", detail::unpacked<LegendreConvWithStates, legendre_conv_with_states_meta>);
  m.impl("legendre_conv_backward", detail::unpacked<LegendreConvBackward, legendre_conv_backward_meta>);
}

}  // namespace hyenarec
