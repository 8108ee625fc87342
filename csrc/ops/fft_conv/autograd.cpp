#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "../common/needed_gradients.h"
#include "arguments.h"

namespace hyenarec {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class FftConv : public torch::autograd::Function<FftConv> {
 public:
  static constexpr bool is_traceable = true;

  // Of the tensors in FftConvArguments.
  static at::Tensor forward(AutogradContext* ctx, const auto&... tensors) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const FftConvArguments arguments{tensors...};
    const auto& [u, kernel, skip, pre_gate, post_gate] = arguments;
    ctx->save_for_backward(
        {u, kernel, skip.value_or(at::Tensor()), pre_gate.value_or(at::Tensor()),
         post_gate.value_or(at::Tensor())});
    return fft_conv(tensors...);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto needed = needed_gradients<5>(ctx, saved);
    const auto skip = optional(saved[2]), pre_gate = optional(saved[3]), post_gate = optional(saved[4]);
    const auto [of_u, of_kernel, of_skip, of_pre_gate, of_post_gate] =
        fft_conv_backward({grads[0], {saved[0], saved[1], skip, pre_gate, post_gate}, needed});
    return {
        if_needed(needed[0], of_u), if_needed(needed[1], of_kernel), if_needed(needed[2], of_skip),
        if_needed(needed[3], of_pre_gate), if_needed(needed[4], of_post_gate)};
  }
};

at::Tensor fft_conv_autograd(const FftConvArguments& arguments) {
  return arguments.apply([](const auto&... tensors) { return FftConv::apply(tensors...); });
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("fft_conv", detail::unpacked<FftConvSignature, fft_conv_autograd>);
  // Second derivatives raise: "derivative for hyenarec::fft_conv_backward is not implemented".
  m.impl("fft_conv_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
