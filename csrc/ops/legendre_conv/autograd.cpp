#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

#include "../common/needed_gradients.h"
#include "arguments.h"

namespace hyenarec {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class LegendreConv : public torch::autograd::Function<LegendreConv> {
 public:
  static constexpr bool is_traceable = true;

  // Each argument by itself, for autograd to find the tensors among them.
  static at::Tensor forward(AutogradContext* ctx, bool save_states, const auto&... each) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const LegendreConvArguments arguments{each...};
    const auto& [u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets] = arguments;
    at::Tensor out, states;
    if (save_states)
      std::tie(out, states) = legendre_conv_with_states(arguments);
    else
      out = legendre_conv(each...);
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
        {grads[0],
         {saved[0], saved[1], saved[2], ctx->saved_data["horizon"].toSymInt(), optional(saved[3]),
          optional(saved[4]), optional(saved[5]), optional(saved[6])},
         needed,
         optional(saved[7])});
    return {
        at::Tensor(),  // save_states
        if_needed(needed[0], u),
        if_needed(needed[1], coeffs),
        if_needed(needed[2], decay),
        at::Tensor(),  // horizon
        if_needed(needed[3], skip),
        if_needed(needed[4], pre_gate),
        if_needed(needed[5], post_gate),
        at::Tensor()};  // offsets
  }
};

at::Tensor legendre_conv_autograd(const LegendreConvArguments& arguments) {
  return arguments.apply([](const auto&... each) { return LegendreConv::apply(false, each...); });
}

// The backward pass on a CPU begins with saved states. Elsewhere they would take memory for nothing.
at::Tensor legendre_conv_autograd_cpu(const LegendreConvArguments& arguments) {
  const auto& [u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets] = arguments;
  const bool save_states = any_needs_gradient({u, coeffs, decay, skip, pre_gate, post_gate});
  return arguments.apply([&](const auto&... each) { return LegendreConv::apply(save_states, each...); });
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, AutogradCPU, m) {
  m.impl("legendre_conv", detail::unpacked<LegendreConvSignature, legendre_conv_autograd_cpu>);
}
TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("legendre_conv", detail::unpacked<LegendreConvSignature, legendre_conv_autograd>);
  m.impl("legendre_conv_with_states", torch::autograd::autogradNotImplementedFallback());
  // Second derivatives raise: "derivative for hyenarec::legendre_conv_backward is not implemented".
  m.impl("legendre_conv_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
