#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "../common/needed_gradients.h"
#include "arguments.h"
#include "short_conv.h"

namespace hyenarec {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<at::Tensor>;

class ShortConv : public torch::autograd::Function<ShortConv> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(
      AutogradContext* ctx, const at::Tensor& u, const at::Tensor& weight, const OptionalTensor& bias,
      const OptionalTensor& offsets) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({u, weight, bias.value_or(at::Tensor()), offsets.value_or(at::Tensor())});
    return short_conv(u, weight, bias, offsets);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto needed = needed_gradients<3>(ctx, saved);
    const auto [u, weight, bias] =
        short_conv_backward(grads[0], saved[0], saved[1], optional(saved[3]), needed);
    return {
        if_needed(needed[0], u), if_needed(needed[1], weight), if_needed(needed[2], bias),
        at::Tensor()};  // offsets
  }
};

at::Tensor short_conv_autograd(
    const at::Tensor& u, const at::Tensor& weight, const OptionalTensor& bias,
    const OptionalTensor& offsets) {
  return ShortConv::apply(u, weight, bias, offsets);
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("short_conv", hyenarec::short_conv_autograd);
  // Second derivatives raise: "derivative for hyenarec::short_conv_backward is not implemented".
  m.impl("short_conv_backward", torch::autograd::autogradNotImplementedFallback());
}
