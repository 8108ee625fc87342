// legendre_step has no gradient, and says so instead of giving a wrong one.
#include "../common/autograd.h"

#include "arguments.h"

namespace hyenarec {
namespace {

void check_no_gradient(const char* name, const OptionalTensor& tensor) {
  TORCH_CHECK(
      !tensor || !tensor->requires_grad(), "legendre_step: ", name,
      " must not require a gradient, since a step has none: call it under torch.no_grad() or "
      "torch.inference_mode(), or train with legendre_conv");
}

at::Tensor legendre_step_autograd(const LegendreStepArguments& arguments) {
  const auto& [state, u, position, weights, horizon, pre_gate, post_gate] = arguments;
  if (at::GradMode::is_enabled()) {
    check_no_gradient("state", state);
    check_no_gradient("u", u);
    check_no_gradient("weights", weights);
    check_no_gradient("pre_gate", pre_gate);
    check_no_gradient("post_gate", post_gate);
  }
  torch::autograd::impl::bump_version(state);  // first: it refuses what must not be changed
  at::AutoDispatchBelowADInplaceOrView guard;
  return legendre_step(state, u, position, weights, horizon, pre_gate, post_gate);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("legendre_step", detail::unchecked<legendre_step_autograd>);
  m.impl("legendre_step_weights", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
