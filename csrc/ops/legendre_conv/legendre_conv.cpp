#include "legendre_conv.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../common/argument_checks.h"
#include "../legendre_scan/states.h"

namespace hyenarec {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor legendre_conv(
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate,
    const OptionalTensor& offsets) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("hyenarec::legendre_conv", "")
                             .typed<decltype(legendre_conv)>();
  return op.call(u, coeffs, decay, std::move(horizon), skip, pre_gate, post_gate, offsets);
}

std::tuple<at::Tensor, at::Tensor> legendre_conv_with_states(
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate,
    const OptionalTensor& offsets) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("hyenarec::legendre_conv_with_states", "")
                             .typed<decltype(legendre_conv_with_states)>();
  return op.call(u, coeffs, decay, std::move(horizon), skip, pre_gate, post_gate, offsets);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> legendre_conv_backward(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate,
    const OptionalTensor& offsets,
    std::array<bool, 6> needs_grad,
    const OptionalTensor& states) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("hyenarec::legendre_conv_backward", "")
                             .typed<decltype(legendre_conv_backward)>();
  return op.call(
      grad, u, coeffs, decay, std::move(horizon), skip, pre_gate, post_gate, offsets, needs_grad, states);
}

namespace detail {
namespace {

void check_arguments(
    const char* op,
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    const c10::SymInt& horizon,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate,
    const OptionalTensor& offsets) {
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

void check_legendre_conv_arguments(
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    const c10::SymInt& horizon,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate,
    const OptionalTensor& offsets) {
  check_arguments("legendre_conv", u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets);
}

void check_legendre_conv_backward_arguments(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    const c10::SymInt& horizon,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate,
    const OptionalTensor& offsets,
    const OptionalTensor& states) {
  const char* op = "legendre_conv_backward";
  check_arguments(op, u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets);
  check_like({op, "grad", grad}, {op, "u", u});
  if (states) check_legendre_states(op, *states, u, coeffs, horizon, offsets);
}

}  // namespace detail

namespace {

at::Tensor legendre_conv_meta(
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate,
    const OptionalTensor& offsets) {
  detail::check_legendre_conv_arguments(u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets);
  return at::empty_symint(u.sym_sizes(), u.options());
}

std::tuple<at::Tensor, at::Tensor> legendre_conv_with_states_meta(
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate,
    const OptionalTensor& offsets) {
  const auto out = legendre_conv_meta(u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets);
  return {out, detail::empty_legendre_states(u, coeffs, horizon, offsets)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
legendre_conv_backward_meta(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate,
    const OptionalTensor& offsets,
    std::array<bool, 6> needs_grad,
    const OptionalTensor& states) {
  detail::check_legendre_conv_backward_arguments(
      grad, u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets, states);
  return {
      detail::empty_gradient(needs_grad[0], u),
      detail::empty_gradient(needs_grad[1], coeffs),
      detail::empty_gradient(needs_grad[2], decay),
      detail::empty_gradient(needs_grad[3] && skip, decay),
      detail::empty_gradient(needs_grad[4] && pre_gate, u),
      detail::empty_gradient(needs_grad[5] && post_gate, u)};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("legendre_conv", hyenarec::legendre_conv_meta);
  m.impl("legendre_conv_with_states", hyenarec::legendre_conv_with_states_meta);
  m.impl("legendre_conv_backward", hyenarec::legendre_conv_backward_meta);
}
