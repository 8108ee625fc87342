#include "short_conv.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../common/operators.h"
#include "arguments.h"

namespace hyenarec {

at::Tensor short_conv(
    const at::Tensor& u, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& offsets) {
  static const auto op = detail::find_operator<decltype(short_conv)>("short_conv");
  return op.call(u, weight, bias, offsets);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> short_conv_backward(
    const at::Tensor& grad, const at::Tensor& u, const at::Tensor& weight,
    const std::optional<at::Tensor>& offsets, std::array<bool, 3> needs_grad) {
  static const auto op = detail::find_operator<decltype(short_conv_backward)>("short_conv_backward");
  return op.call(grad, u, weight, offsets, needs_grad);
}

namespace detail {

void check_short_filter(
    const Argument& weight, const c10::SymInt& channels, const char* layout, const char* symbol,
    const Argument& activation) {
  check_parameter(weight, 2, channels, layout, symbol, activation);
  const auto width = weight.tensor.sym_size(1);
  TORCH_SYM_CHECK(
      width.sym_ge(1).sym_and(width.sym_le(kShortConvMaxWidth)), weight.op, ": ", weight.name, " must be ",
      layout, " with 1 <= W <= ", kShortConvMaxWidth, ", got ", weight.tensor.sym_sizes());
}

namespace {

void check_arguments(
    const char* op, const at::Tensor& u, const at::Tensor& weight, const std::optional<at::Tensor>& offsets) {
  const Argument u_argument{op, "u", u};
  check_activation_type(u_argument);
  check_sequences(u_argument, offsets, "[B, L, D]", "[total, D]");
  check_short_filter({op, "weight", weight}, u.sym_size(-1), "[D, W]", "D", u_argument);
}

}  // namespace

void check_short_conv_arguments(
    const at::Tensor& u, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& offsets) {
  const char* op = "short_conv";
  check_arguments(op, u, weight, offsets);
  if (bias) check_parameter({op, "bias", *bias}, 1, u.sym_size(-1), "[D]", "D", {op, "u", u});
}

void check_short_conv_backward_arguments(
    const at::Tensor& grad, const at::Tensor& u, const at::Tensor& weight,
    const std::optional<at::Tensor>& offsets) {
  const char* op = "short_conv_backward";
  check_arguments(op, u, weight, offsets);
  check_like({op, "grad", grad}, {op, "u", u});
}

}  // namespace detail

namespace {

at::Tensor short_conv_meta(
    const at::Tensor& u, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& offsets) {
  detail::check_short_conv_arguments(u, weight, bias, offsets);
  return at::empty_symint(u.sym_sizes(), u.options());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> short_conv_backward_meta(
    const at::Tensor& grad, const at::Tensor& u, const at::Tensor& weight,
    const std::optional<at::Tensor>& offsets, std::array<bool, 3> needs_grad) {
  detail::check_short_conv_backward_arguments(grad, u, weight, offsets);
  using detail::empty_gradient;
  return {
      empty_gradient(needs_grad[0], u), empty_gradient(needs_grad[1], weight),
      empty_gradient(needs_grad[2], weight.select(1, 0))};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_FRAGMENT(hyenarec, m) {
  m.def("short_conv(Tensor u, Tensor weight, Tensor? bias=None, Tensor? offsets=None) -> Tensor");
  m.def(
      "short_conv_backward(Tensor grad, Tensor u, Tensor weight, Tensor? offsets, bool[3] needs_grad) "
      "-> (Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("short_conv", hyenarec::short_conv_meta);
  m.impl("short_conv_backward", hyenarec::short_conv_backward_meta);
}
