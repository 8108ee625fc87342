#include "short_conv.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "argument_checks.h"

namespace hyenarec {

at::Tensor short_conv(
    const at::Tensor& u,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& offsets) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("hyenarec::short_conv", "")
                             .typed<decltype(short_conv)>();
  return op.call(u, weight, bias, offsets);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> short_conv_backward(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& weight,
    bool has_bias,
    const std::optional<at::Tensor>& offsets) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("hyenarec::short_conv_backward", "")
                             .typed<decltype(short_conv_backward)>();
  return op.call(grad, u, weight, has_bias, offsets);
}

namespace detail {
namespace {

void check_arguments(
    const char* op, const at::Tensor& u, const at::Tensor& weight, const std::optional<at::Tensor>& offsets) {
  const Argument u_argument{op, "u", u};
  check_activation_type(u_argument);
  if (offsets) {
    check_rank(u_argument, 2, "[total, D] when offsets are given");
    const Argument offsets_argument{op, "offsets", *offsets};
    check_rank(offsets_argument, 1, "[S + 1]");
    check_type(offsets_argument, c10::kLong, "");
    check_device(offsets_argument, u_argument);
    TORCH_SYM_CHECK(
        offsets->sym_size(0).sym_ge(1), op, ": offsets must be [S + 1] with S >= 0, got ",
        offsets->sym_sizes());
  } else {
    check_rank(u_argument, 3, "[B, L, D] when no offsets are given");
  }

  const Argument weight_argument{op, "weight", weight};
  check_rank(weight_argument, 2, "[D, W]");
  check_size(weight_argument, 0, u.sym_size(-1), "[D, W]", "D");
  const auto width = weight.sym_size(1);
  TORCH_SYM_CHECK(
      width.sym_ge(1).sym_and(width.sym_le(kShortConvMaxWidth)), op,
      ": weight must be [D, W] with 1 <= W <= ", kShortConvMaxWidth, ", got ", weight.sym_sizes());
  check_type(weight_argument, parameter_type(u.scalar_type()), "beside this u");
  check_device(weight_argument, u_argument);
}

}  // namespace

void check_short_conv_arguments(
    const at::Tensor& u,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& offsets) {
  const char* op = "short_conv";
  check_arguments(op, u, weight, offsets);
  if (bias) {
    const Argument bias_argument{op, "bias", *bias};
    check_rank(bias_argument, 1, "[D]");
    check_size(bias_argument, 0, u.sym_size(-1), "[D]", "D");
    check_type(bias_argument, weight.scalar_type(), "like weight");
    check_device(bias_argument, {op, "u", u});
  }
}

void check_short_conv_backward_arguments(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& offsets) {
  const char* op = "short_conv_backward";
  check_arguments(op, u, weight, offsets);
  check_like({op, "grad", grad}, {op, "u", u});
}

}  // namespace detail

namespace {

at::Tensor short_conv_meta(
    const at::Tensor& u,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& offsets) {
  detail::check_short_conv_arguments(u, weight, bias, offsets);
  return at::empty_symint(u.sym_sizes(), u.options());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> short_conv_backward_meta(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& weight,
    bool has_bias,
    const std::optional<at::Tensor>& offsets) {
  detail::check_short_conv_backward_arguments(grad, u, weight, offsets);
  return {
      at::empty_symint(u.sym_sizes(), u.options()), at::empty_symint(weight.sym_sizes(), weight.options()),
      has_bias ? at::empty_symint({weight.sym_size(0)}, weight.options()) : at::empty({0}, weight.options())};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("short_conv", hyenarec::short_conv_meta);
  m.impl("short_conv_backward", hyenarec::short_conv_backward_meta);
}
