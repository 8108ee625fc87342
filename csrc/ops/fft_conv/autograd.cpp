#include "fft_conv.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "../common/needed_gradients.h"

namespace hyenarec {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<at::Tensor>;

class FftConv : public torch::autograd::Function<FftConv> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(
      AutogradContext* ctx,
      const at::Tensor& u,
      const at::Tensor& kernel,
      const OptionalTensor& skip,
      const OptionalTensor& pre_gate,
      const OptionalTensor& post_gate) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward(
        {u, kernel, skip.value_or(at::Tensor()), pre_gate.value_or(at::Tensor()),
         post_gate.value_or(at::Tensor())});
    return fft_conv(u, kernel, skip, pre_gate, post_gate);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto needed = needed_gradients<5>(ctx, saved);
    const auto [u, kernel, skip, pre_gate, post_gate] = fft_conv_backward(
        grads[0], saved[0], saved[1], optional(saved[2]), optional(saved[3]), optional(saved[4]), needed);
    return {
        if_needed(needed[0], u), if_needed(needed[1], kernel), if_needed(needed[2], skip),
        if_needed(needed[3], pre_gate), if_needed(needed[4], post_gate)};
  }
};

at::Tensor fft_conv_autograd(
    const at::Tensor& u,
    const at::Tensor& kernel,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate) {
  return FftConv::apply(u, kernel, skip, pre_gate, post_gate);
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("fft_conv", hyenarec::fft_conv_autograd);
  // Second derivatives raise: "derivative for hyenarec::fft_conv_backward is not implemented".
  m.impl("fft_conv_backward", torch::autograd::autogradNotImplementedFallback());
}
