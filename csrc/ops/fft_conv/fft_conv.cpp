#include "fft_conv.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../common/argument_checks.h"

namespace hyenarec {

at::Tensor fft_conv(
    const at::Tensor& u,
    const at::Tensor& kernel,
    const std::optional<at::Tensor>& skip,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("hyenarec::fft_conv", "").typed<decltype(fft_conv)>();
  return op.call(u, kernel, skip, pre_gate, post_gate);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> fft_conv_backward(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& kernel,
    const std::optional<at::Tensor>& skip,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate,
    std::array<bool, 5> needs_grad) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("hyenarec::fft_conv_backward", "")
                             .typed<decltype(fft_conv_backward)>();
  return op.call(grad, u, kernel, skip, pre_gate, post_gate, needs_grad);
}

namespace detail {
namespace {

void check_arguments(
    const char* op,
    const at::Tensor& u,
    const at::Tensor& kernel,
    const std::optional<at::Tensor>& skip,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate) {
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

void check_fft_conv_arguments(
    const at::Tensor& u,
    const at::Tensor& kernel,
    const std::optional<at::Tensor>& skip,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate) {
  check_arguments("fft_conv", u, kernel, skip, pre_gate, post_gate);
}

void check_fft_conv_backward_arguments(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& kernel,
    const std::optional<at::Tensor>& skip,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate) {
  const char* op = "fft_conv_backward";
  check_arguments(op, u, kernel, skip, pre_gate, post_gate);
  check_like({op, "grad", grad}, {op, "u", u});
}

}  // namespace detail

namespace {

at::Tensor fft_conv_meta(
    const at::Tensor& u,
    const at::Tensor& kernel,
    const std::optional<at::Tensor>& skip,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate) {
  detail::check_fft_conv_arguments(u, kernel, skip, pre_gate, post_gate);
  return at::empty_symint(u.sym_sizes(), u.options());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> fft_conv_backward_meta(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& kernel,
    const std::optional<at::Tensor>& skip,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate,
    std::array<bool, 5> needs_grad) {
  detail::check_fft_conv_backward_arguments(grad, u, kernel, skip, pre_gate, post_gate);
  using detail::empty_gradient;
  return {
      empty_gradient(needs_grad[0], u), empty_gradient(needs_grad[1], kernel),
      skip ? empty_gradient(needs_grad[2], *skip) : at::empty({0}, kernel.options()),
      empty_gradient(needs_grad[3] && pre_gate, u), empty_gradient(needs_grad[4] && post_gate, u)};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("fft_conv", hyenarec::fft_conv_meta);
  m.impl("fft_conv_backward", hyenarec::fft_conv_backward_meta);
}
