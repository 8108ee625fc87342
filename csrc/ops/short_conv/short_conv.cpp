#include "short_conv.h"

#include "../common/autograd.h"
#include "arguments.h"

namespace hyenarec {

constexpr auto short_conv_op = detail::dispatch<"short_conv", at::Tensor, ShortConvArguments>;

at::Tensor short_conv(
    const at::Tensor& u, const at::Tensor& weight, const OptionalTensor& bias,
    const OptionalTensor& offsets) {
  return short_conv_op({u, weight, bias, offsets});
}

void detail::check_short_filter(
    const Argument& weight, const c10::SymInt& channels, const char* layout, const char* symbol,
    const Argument& activation) {
  check_parameter(weight, 2, channels, layout, symbol, activation);
  const auto width = weight.tensor.sym_size(1);
  TORCH_SYM_CHECK(
      width.sym_ge(1).sym_and(width.sym_le(kShortConvMaxWidth)), weight.op, ": ", weight.name, " must be ",
      layout, " with 1 <= W <= ", kShortConvMaxWidth, ", got ", weight.tensor.sym_sizes());
}

void ShortConvArguments::check(const char* op) const {
  using namespace detail;
  const Argument u_argument{op, "u", u};
  check_activation_type(u_argument);
  check_sequences(u_argument, offsets, "[B, L, D]", "[total, D]");
  check_short_filter({op, "weight", weight}, u.sym_size(-1), "[D, W]", "D", u_argument);
  if (bias) check_parameter({op, "bias", *bias}, 1, u.sym_size(-1), "[D]", "D", u_argument);
}

void ShortConvArguments::check_backward(const at::Tensor& grad) const {
  const char* op = "short_conv_backward";
  check(op);
  detail::check_like({op, "grad", grad}, {op, "u", u});
}

TORCH_LIBRARY_FRAGMENT(hyenarec, m) {
  m.def("short_conv(Tensor u, Tensor weight, Tensor? bias=None, Tensor? offsets=None) -> Tensor");
  m.def(
      "short_conv_backward(Tensor grad, Tensor u, Tensor weight, Tensor? bias, Tensor? offsets, bool[3] "
      "needs_grad) "
      "-> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("short_conv", detail::checked<detail::meta_like_first<ShortConvArguments>>);
  m.impl("short_conv_backward", detail::checked<detail::meta_gradients<ShortConvBackwardArguments>>);
}

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("short_conv", detail::unchecked<detail::gradient<short_conv_op, detail::short_conv_backward>>);
  m.impl("short_conv_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
