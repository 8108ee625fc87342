#include "fft_conv.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../common/argument_checks.h"
#include "arguments.h"

namespace hyenarec {

at::Tensor fft_conv(
    const at::Tensor& u, const at::Tensor& kernel, const OptionalTensor& skip, const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate) {
  static const auto op = detail::find_operator<decltype(fft_conv)>("fft_conv");
  return op.call(u, kernel, skip, pre_gate, post_gate);
}

FftConvGradients fft_conv_backward(const FftConvBackwardArguments& arguments) {
  static const auto op = detail::find_operator<FftConvBackward>("fft_conv_backward");
  return arguments.forward.apply(
      [&](const auto&... forward) { return op.call(arguments.grad, forward..., arguments.needs_grad); });
}

namespace detail {
namespace {

void check_arguments(const char* op, const FftConvArguments& arguments) {
  const auto& [u, kernel, skip, pre_gate, post_gate] = arguments;
  const Argument u_argument{op, "u", u};
  check_activation_type(u_argument);
  check_rank(u_argument, 3, "[B, L, D]");
  const auto channels = u.sym_size(2);
  check_parameter({op, "kernel", kernel}, 2, channels, "[D, K]", "D", u_argument);
  if (skip) check_parameter({op, "skip", *skip}, 1, channels, "[D]", "D", u_argument);
  if (pre_gate) check_like({op, "pre_gate", *pre_gate}, u_argument);
  if (post_gate) check_like({op, "post_gate", *post_gate}, u_argument);
}

}  // namespace

void check_fft_conv_arguments(const FftConvArguments& arguments) { check_arguments("fft_conv", arguments); }

void check_fft_conv_backward_arguments(const FftConvBackwardArguments& arguments) {
  const char* op = "fft_conv_backward";
  check_arguments(op, arguments.forward);
  check_like({op, "grad", arguments.grad}, {op, "u", arguments.forward.u});
}

}  // namespace detail

namespace {

at::Tensor fft_conv_meta(const FftConvArguments& arguments) {
  detail::check_fft_conv_arguments(arguments);
  return at::empty_symint(arguments.u.sym_sizes(), arguments.u.options());
}

FftConvGradients fft_conv_backward_meta(const FftConvBackwardArguments& arguments) {
  detail::check_fft_conv_backward_arguments(arguments);
  const auto& [u, kernel, skip, pre_gate, post_gate] = arguments.forward;
  const auto& needs_grad = arguments.needs_grad;
  using detail::empty_gradient;
  return {
      empty_gradient(needs_grad[0], u), empty_gradient(needs_grad[1], kernel),
      empty_gradient(needs_grad[2] && skip, skip.value_or(kernel)),
      empty_gradient(needs_grad[3] && pre_gate, u), empty_gradient(needs_grad[4] && post_gate, u)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(hyenarec, m) {
  m.def(
      "fft_conv(Tensor u, Tensor kernel, Tensor? skip=None, Tensor? pre_gate=None, Tensor? post_gate=None) "
      "-> Tensor");
  m.def(
      "fft_conv_backward(Tensor grad, Tensor u, Tensor kernel, Tensor? skip, Tensor? pre_gate, Tensor? "
      "post_gate, bool[5] needs_grad) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("fft_conv", detail::unpacked<FftConvSignature, fft_conv_meta>);
  m.impl("fft_conv_backward", detail::unpacked<FftConvBackward, fft_conv_backward_meta>);
}

}  // namespace hyenarec
