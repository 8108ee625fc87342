#include "../common/autograd.h"

#include "arguments.h"

namespace hyenarec {

using ShortConvGradient = detail::Differentiable<
    detail::dispatch<"short_conv", at::Tensor, ShortConvArguments>, detail::short_conv_backward>;

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("short_conv", detail::unchecked<ShortConvGradient::kernel>);
  m.impl("short_conv_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
