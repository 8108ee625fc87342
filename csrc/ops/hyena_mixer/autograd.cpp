#include "../common/autograd.h"

#include "arguments.h"

namespace hyenarec {

using HyenaMixerGradient = detail::Differentiable<
    detail::dispatch<"hyena_mixer", at::Tensor, HyenaMixerArguments>, hyena_mixer_backward>;

// The backward pass on a CPU begins with saved states. Elsewhere they would take memory for nothing.
using HyenaMixerGradientCPU = detail::Differentiable<hyena_mixer_with_states, hyena_mixer_backward>;

static at::Tensor hyena_mixer_autograd_cpu(const HyenaMixerArguments& arguments) {
  return detail::any_needs_gradient<6>(arguments) ? HyenaMixerGradientCPU::kernel(arguments)
                                                  : HyenaMixerGradient::kernel(arguments);
}

TORCH_LIBRARY_IMPL(hyenarec, AutogradCPU, m) {
  m.impl("hyena_mixer", detail::unchecked<hyena_mixer_autograd_cpu>);
}
TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("hyena_mixer", detail::unchecked<HyenaMixerGradient::kernel>);
  m.impl("hyena_mixer_with_states", torch::autograd::autogradNotImplementedFallback());
  m.impl("hyena_mixer_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
