#include "hyena_mixer.h"

#include "../common/autograd.h"
#include "../short_conv/arguments.h"
#include "arguments.h"

namespace hyenarec {

constexpr auto hyena_mixer_op = detail::dispatch<"hyena_mixer", at::Tensor, HyenaMixerArguments>;

at::Tensor hyena_mixer(
    const at::Tensor& x, const at::Tensor& short_weight, const OptionalTensor& short_bias,
    const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon, const at::Tensor& skip,
    const OptionalTensor& offsets) {
  return hyena_mixer_op({x, short_weight, short_bias, coeffs, decay, std::move(horizon), skip, offsets});
}

void HyenaMixerArguments::check(const char* op) const {
  using namespace detail;
  const Argument x_argument{op, "x", x};
  check_activation_type(x_argument);
  check_sequences_within(horizon, x_argument, offsets, "[B, L, 3D]", "[total, 3D]");
  TORCH_SYM_CHECK(
      (x.sym_size(-1) % 3).sym_eq(0), op,
      ": x must be [.., 3D], the channels of q, k and v side by side, got ", x.sym_sizes());
  const auto channels = x.sym_size(-1) / 3;
  check_short_filter({op, "short_weight", short_weight}, x.sym_size(-1), "[3D, W]", "3D", x_argument);
  if (short_bias)
    check_parameter({op, "short_bias", *short_bias}, 1, x.sym_size(-1), "[3D]", "3D", x_argument);
  check_parameter({op, "coeffs", coeffs}, 2, channels, "[D, N]", "D", x_argument);
  check_parameter({op, "decay", decay}, 1, channels, "[D]", "D", x_argument);
  check_parameter({op, "skip", skip}, 1, channels, "[D]", "D", x_argument);
}

c10::SymDimVector HyenaMixerArguments::output_sizes() const {
  c10::SymDimVector sizes(x.sym_sizes());
  sizes.back() = sizes.back() / 3;
  return sizes;
}

void HyenaMixerArguments::check_backward(const at::Tensor& grad) const {
  const char* op = kBackward;
  check(op);
  const char* layout = offsets ? "[total, D]" : "[B, L, D]";
  const detail::Argument grad_argument{op, "grad", grad};
  detail::check_rank(grad_argument, x.dim(), layout);
  const auto sizes = output_sizes();
  for (int64_t dim = 0; dim < x.dim(); ++dim) {
    TORCH_SYM_CHECK(
        grad.sym_size(dim).sym_eq(sizes[dim]), op, ": grad must be ", layout, ", ",
        c10::SymIntArrayRef(sizes), ", got ", grad.sym_sizes());
  }
  detail::check_type(grad_argument, x.scalar_type(), "like x");
  detail::check_device(grad_argument, {op, "x", x});
}

TORCH_LIBRARY_FRAGMENT(hyenarec, m) {
  m.def(
      "hyena_mixer(Tensor x, Tensor short_weight, Tensor? short_bias, Tensor coeffs, Tensor decay, SymInt "
      "horizon, Tensor skip, Tensor? offsets=None) -> Tensor");
  m.def(
      "hyena_mixer_with_states(Tensor x, Tensor short_weight, Tensor? short_bias, Tensor coeffs, Tensor "
      "decay, SymInt horizon, Tensor skip, Tensor? offsets) -> (Tensor, Tensor)");
  m.def(
      "hyena_mixer_backward(Tensor grad, Tensor x, Tensor short_weight, Tensor? short_bias, Tensor coeffs, "
      "Tensor decay, SymInt horizon, Tensor skip, Tensor? offsets, bool[6] needs_grad, Tensor? states=None) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

static at::Tensor hyena_mixer_meta(const HyenaMixerArguments& arguments) {
  return at::empty_symint(arguments.output_sizes(), arguments.x.options());
}

TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("hyena_mixer", detail::checked<hyena_mixer_meta>);
  m.impl("hyena_mixer_with_states", detail::checked<detail::meta_with_states<hyena_mixer_meta>>);
  m.impl("hyena_mixer_backward", detail::checked<detail::meta_gradients<HyenaMixerBackwardArguments>>);
}

// The backward pass on a CPU begins with saved states. Elsewhere they would take memory for nothing.
TORCH_LIBRARY_IMPL(hyenarec, AutogradCPU, m) {
  m.impl(
      "hyena_mixer",
      detail::unchecked<
          detail::gradient_saving<hyena_mixer_op, hyena_mixer_with_states, hyena_mixer_backward>>);
}
TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("hyena_mixer", detail::unchecked<detail::gradient<hyena_mixer_op, hyena_mixer_backward>>);
  m.impl("hyena_mixer_with_states", torch::autograd::autogradNotImplementedFallback());
  m.impl("hyena_mixer_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
