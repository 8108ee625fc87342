#include "../hyena_mixer.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "needed_gradients.h"

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
      const OptionalTensor& offsets) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward(
        {x, short_weight, short_bias.value_or(at::Tensor()), coeffs, decay, skip,
         offsets.value_or(at::Tensor())});
    ctx->saved_data["horizon"] = horizon;
    return hyena_mixer(x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto needed = needed_gradients<6>(ctx, saved);
    const auto [x, short_weight, short_bias, coeffs, decay, skip] = hyena_mixer_backward(
        grads[0], saved[0], saved[1], optional(saved[2]), saved[3], saved[4],
        ctx->saved_data["horizon"].toSymInt(), saved[5], optional(saved[6]), needed);
    return {
        if_needed(needed[0], x),
        if_needed(needed[1], short_weight),
        if_needed(needed[2], short_bias),
        if_needed(needed[3], coeffs),
        if_needed(needed[4], decay),
        at::Tensor(),  // horizon
        if_needed(needed[5], skip),
        at::Tensor()};  // offsets
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
  return HyenaMixer::apply(x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets);
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("hyena_mixer", hyenarec::hyena_mixer_autograd);
  // Second derivatives raise: "derivative for hyenarec::hyena_mixer_backward is not implemented".
  m.impl("hyena_mixer_backward", torch::autograd::autogradNotImplementedFallback());
}
