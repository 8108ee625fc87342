#include "../common/autograd.h"

#include "arguments.h"

namespace hyenarec {

using LegendreConvGradient = detail::Differentiable<
    detail::dispatch<"legendre_conv", at::Tensor, LegendreConvArguments>, legendre_conv_backward>;

// The backward pass on a CPU begins with saved states. Elsewhere they would take memory for nothing.
using LegendreConvGradientCPU = detail::Differentiable<legendre_conv_with_states, legendre_conv_backward>;

static at::Tensor legendre_conv_autograd_cpu(const LegendreConvArguments& arguments) {
  return detail::any_needs_gradient<6>(arguments) ? LegendreConvGradientCPU::kernel(arguments)
                                                  : LegendreConvGradient::kernel(arguments);
}

TORCH_LIBRARY_IMPL(hyenarec, AutogradCPU, m) {
  m.impl("legendre_conv", detail::unchecked<legendre_conv_autograd_cpu>);
}
TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("legendre_conv", detail::unchecked<LegendreConvGradient::kernel>);
  m.impl("legendre_conv_with_states", torch::autograd::autogradNotImplementedFallback());
  m.impl("legendre_conv_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
