#include "../common/autograd.h"

#include "arguments.h"

namespace hyenarec {

using LegendreKernelGradient = detail::Differentiable<
    detail::dispatch<"legendre_kernel", at::Tensor, LegendreKernelArguments>, legendre_kernel_backward>;

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("legendre_kernel", detail::unchecked<LegendreKernelGradient::kernel>);
  m.impl("legendre_kernel_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
