#include "legendre_conv.h"

#include "../common/autograd.h"
#include "arguments.h"

namespace hyenarec {

constexpr auto legendre_conv_op = detail::dispatch<"legendre_conv", at::Tensor, LegendreConvArguments>;

at::Tensor legendre_conv(
    const at::Tensor& u, const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon,
    const OptionalTensor& skip, const OptionalTensor& pre_gate, const OptionalTensor& post_gate,
    const OptionalTensor& offsets) {
  return legendre_conv_op({u, coeffs, decay, std::move(horizon), skip, pre_gate, post_gate, offsets});
}

void LegendreConvArguments::check(const char* op) const {
  using namespace detail;
  const Argument u_argument{op, "u", u};
  check_activation_type(u_argument);
  check_sequences_within(horizon, u_argument, offsets, "[B, L, D]", "[total, D]");
  const auto channels = u.sym_size(-1);
  check_parameter({op, "coeffs", coeffs}, 2, channels, "[D, N]", "D", u_argument);
  check_parameter({op, "decay", decay}, 1, channels, "[D]", "D", u_argument);
  if (skip) check_parameter({op, "skip", *skip}, 1, channels, "[D]", "D", u_argument);
  if (pre_gate) check_like({op, "pre_gate", *pre_gate}, u_argument);
  if (post_gate) check_like({op, "post_gate", *post_gate}, u_argument);
}

void LegendreConvArguments::check_backward(const at::Tensor& grad) const {
  const char* op = kBackward;
  check(op);
  detail::check_like({op, "grad", grad}, {op, "u", u});
}

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
  m.impl("legendre_conv", detail::checked<detail::meta_like_first<LegendreConvArguments>>);
  m.impl(
      "legendre_conv_with_states",
      detail::checked<detail::meta_with_states<detail::meta_like_first<LegendreConvArguments>>>);
  m.impl("legendre_conv_backward", detail::checked<detail::meta_gradients<LegendreConvBackwardArguments>>);
}

// The backward pass on a CPU begins with saved states. Elsewhere they would take memory for nothing.
TORCH_LIBRARY_IMPL(hyenarec, AutogradCPU, m) {
  m.impl(
      "legendre_conv",
      detail::unchecked<
          detail::gradient_saving<legendre_conv_op, legendre_conv_with_states, legendre_conv_backward>>);
}
TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("legendre_conv", detail::unchecked<detail::gradient<legendre_conv_op, legendre_conv_backward>>);
  m.impl("legendre_conv_with_states", torch::autograd::autogradNotImplementedFallback());
  m.impl("legendre_conv_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
