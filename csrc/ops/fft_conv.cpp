#include "fft_conv.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "argument_checks.h"

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
  const auto type = parameter_type(u.scalar_type());

  const Argument kernel_argument{op, "kernel", kernel};
  check_rank(kernel_argument, 2, "[D, K]");
  check_size(kernel_argument, 0, channels, "[D, K]", "D");
  check_type(kernel_argument, type, "beside this u");
  check_device(kernel_argument, u_argument);
  if (skip) {
    const Argument skip_argument{op, "skip", *skip};
    check_rank(skip_argument, 1, "[D]");
    check_size(skip_argument, 0, channels, "[D]", "D");
    check_type(skip_argument, type, "beside this u");
    check_device(skip_argument, u_argument);
  }
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
  const auto gradient = [](bool needed, const at::Tensor& like, c10::SymIntArrayRef sizes) {
    return needed ? at::empty_symint(sizes, like.options()) : at::empty({0}, like.options());
  };
  return {
      gradient(needs_grad[0], u, u.sym_sizes()), gradient(needs_grad[1], kernel, kernel.sym_sizes()),
      gradient(needs_grad[2] && skip, kernel, kernel.sym_sizes().slice(0, 1)),
      gradient(needs_grad[3] && pre_gate, u, u.sym_sizes()),
      gradient(needs_grad[4] && post_gate, u, u.sym_sizes())};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("fft_conv", hyenarec::fft_conv_meta);
  m.impl("fft_conv_backward", hyenarec::fft_conv_backward_meta);
}
