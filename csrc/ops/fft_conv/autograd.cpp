#include "../common/autograd.h"

#include "arguments.h"

namespace hyenarec {

using FftConvGradient =
    detail::Differentiable<detail::dispatch<"fft_conv", at::Tensor, FftConvArguments>, fft_conv_backward>;

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("fft_conv", detail::unchecked<FftConvGradient::kernel>);
  m.impl("fft_conv_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
