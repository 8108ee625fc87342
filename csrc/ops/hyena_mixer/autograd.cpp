#include "hyena_mixer.h"

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

class HyenaMixer : public torch::autograd::Function<HyenaMixer> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(
      AutogradContext* ctx,
      const at::Tensor& x,
      const at::Tensor& short_weight,
      const OptionalTensor& short_bias,
      const at::Tensor& coeffs,
      const at::Tensor& decay,
      const c10::SymInt& horizon,
      const at::Tensor& skip,
      const OptionalTensor& offsets,
      bool save_states) {
    at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor out, states;
    if (save_states)
      std::tie(out, states) =
          hyena_mixer_with_states(x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets);
    else
      out = hyena_mixer(x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets);
    ctx->save_for_backward(
        {x, short_weight, short_bias.value_or(at::Tensor()), coeffs, decay, skip,
         offsets.value_or(at::Tensor()), states});
    ctx->saved_data["horizon"] = horizon;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto needed = needed_gradients<6>(ctx, saved);
    const auto [x, short_weight, short_bias, coeffs, decay, skip] = hyena_mixer_backward(
        grads[0], saved[0], saved[1], optional(saved[2]), saved[3], saved[4],
        ctx->saved_data["horizon"].toSymInt(), saved[5], optional(saved[6]), needed, optional(saved[7]));
    return {
        if_needed(needed[0], x),
        if_needed(needed[1], short_weight),
        if_needed(needed[2], short_bias),
        if_needed(needed[3], coeffs),
        if_needed(needed[4], decay),
        at::Tensor(),  // horizon
        if_needed(needed[5], skip),
        at::Tensor(),   // offsets
        at::Tensor()};  // save_states
  }
};

at::Tensor hyena_mixer_autograd(
    const at::Tensor& x,
    const at::Tensor& short_weight,
    const OptionalTensor& short_bias,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const at::Tensor& skip,
    const OptionalTensor& offsets) {
  // By device, for once: only the backward pass on a CPU begins with saved states, elsewhere they would take
  // memory for nothing.
  const bool save_states =
      x.is_cpu() && any_needs_gradient({x, short_weight, short_bias, coeffs, decay, skip});
  return HyenaMixer::apply(x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets, save_states);
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("hyena_mixer", hyenarec::hyena_mixer_autograd);
  m.impl("hyena_mixer_with_states", torch::autograd::autogradNotImplementedFallback());
  // Second derivatives raise: "derivative for hyenarec::hyena_mixer_backward is not implemented".
  m.impl("hyena_mixer_backward", torch::autograd::autogradNotImplementedFallback());
}
