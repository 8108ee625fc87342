#include "legendre_conv.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

#include "../common/needed_gradients.h"

namespace hyenarec {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<at::Tensor>;

class LegendreConv : public torch::autograd::Function<LegendreConv> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(
      AutogradContext* ctx,
      const at::Tensor& u,
      const at::Tensor& coeffs,
      const at::Tensor& decay,
      const c10::SymInt& horizon,
      const OptionalTensor& skip,
      const OptionalTensor& pre_gate,
      const OptionalTensor& post_gate,
      const OptionalTensor& offsets,
      bool save_states) {
    at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor out, states;
    if (save_states)
      std::tie(out, states) =
          legendre_conv_with_states(u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets);
    else
      out = legendre_conv(u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets);
    ctx->save_for_backward(
        {u, coeffs, decay, skip.value_or(at::Tensor()), pre_gate.value_or(at::Tensor()),
         post_gate.value_or(at::Tensor()), offsets.value_or(at::Tensor()), states});
    ctx->saved_data["horizon"] = horizon;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto needed = needed_gradients<6>(ctx, saved);
    const auto [u, coeffs, decay, skip, pre_gate, post_gate] = legendre_conv_backward(
        grads[0], saved[0], saved[1], saved[2], ctx->saved_data["horizon"].toSymInt(), optional(saved[3]),
        optional(saved[4]), optional(saved[5]), optional(saved[6]), needed, optional(saved[7]));
    return {
        if_needed(needed[0], u),
        if_needed(needed[1], coeffs),
        if_needed(needed[2], decay),
        at::Tensor(),  // horizon
        if_needed(needed[3], skip),
        if_needed(needed[4], pre_gate),
        if_needed(needed[5], post_gate),
        at::Tensor(),   // offsets
        at::Tensor()};  // save_states
  }
};

at::Tensor legendre_conv_autograd(
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate,
    const OptionalTensor& offsets) {
  // By device, for once: only the backward pass on a CPU begins with saved states, elsewhere they would take
  // memory for nothing.
  const bool save_states = u.is_cpu() && any_needs_gradient({u, coeffs, decay, skip, pre_gate, post_gate});
  return LegendreConv::apply(u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets, save_states);
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("legendre_conv", hyenarec::legendre_conv_autograd);
  m.impl("legendre_conv_with_states", torch::autograd::autogradNotImplementedFallback());
  // Second derivatives raise: "derivative for hyenarec::legendre_conv_backward is not implemented".
  m.impl("legendre_conv_backward", torch::autograd::autogradNotImplementedFallback());
}
