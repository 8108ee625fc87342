#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "arguments.h"
#include "legendre_kernel.h"

namespace hyenarec {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class LegendreKernel : public torch::autograd::Function<LegendreKernel> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(
      AutogradContext* ctx, const at::Tensor& coeffs, const at::Tensor& decay, const c10::SymInt& horizon,
      const c10::SymInt& length) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({coeffs, decay});
    ctx->saved_data["horizon"] = horizon;
    return legendre_kernel(coeffs, decay, horizon, length);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    auto [coeffs_grad, decay_grad] =
        legendre_kernel_backward(grads[0], saved[0], saved[1], ctx->saved_data["horizon"].toSymInt());
    return {coeffs_grad, decay_grad, at::Tensor(), at::Tensor()};
  }
};

at::Tensor legendre_kernel_autograd(
    const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon, c10::SymInt length) {
  return LegendreKernel::apply(coeffs, decay, horizon, length);
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("legendre_kernel", hyenarec::legendre_kernel_autograd);
  // Second derivatives raise: "derivative for hyenarec::legendre_kernel_backward is not implemented".
  m.impl("legendre_kernel_backward", torch::autograd::autogradNotImplementedFallback());
}
