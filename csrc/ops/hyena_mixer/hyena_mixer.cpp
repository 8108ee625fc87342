#include "hyena_mixer.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../common/argument_checks.h"
#include "../legendre_scan/cpu/saved_states.h"
#include "../short_conv/arguments.h"
#include "arguments.h"

namespace hyenarec {

at::Tensor hyena_mixer(
    const at::Tensor& x, const at::Tensor& short_weight, const OptionalTensor& short_bias,
    const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon, const at::Tensor& skip,
    const OptionalTensor& offsets) {
  static const auto op = detail::find_operator<HyenaMixerSignature>("hyena_mixer");
  return op.call(x, short_weight, short_bias, coeffs, decay, std::move(horizon), skip, offsets);
}

std::tuple<at::Tensor, at::Tensor> hyena_mixer_with_states(const HyenaMixerArguments& arguments) {
  static const auto op = detail::find_operator<HyenaMixerWithStates>("hyena_mixer_with_states");
  return arguments.apply([](const auto&... each) { return op.call(each...); });
}

HyenaMixerGradients hyena_mixer_backward(const HyenaMixerBackwardArguments& arguments) {
  static const auto op = detail::find_operator<HyenaMixerBackward>("hyena_mixer_backward");
  return arguments.forward.apply([&](const auto&... each) {
    return op.call(arguments.grad, each..., arguments.needs_grad, arguments.states);
  });
}

namespace detail {
namespace {

void check_arguments(const char* op, const HyenaMixerArguments& arguments) {
  const auto& [x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets] = arguments;
  const Argument x_argument{op, "x", x};
  check_activation_type(x_argument);
  check_sequences(x_argument, offsets, "[B, L, 3D]", "[total, 3D]");
  check_horizon(op, horizon);
  if (!offsets) check_padded_length(x_argument, horizon, "[B, L, 3D]");
  TORCH_SYM_CHECK(
      (x.sym_size(-1) % 3).sym_eq(0), op,
      ": x must be [.., 3D], the channels of q, k and v side by side, got ", x.sym_sizes());
  const auto channels = x.sym_size(-1) / 3;
  check_short_filter({op, "short_weight", short_weight}, x.sym_size(-1), "[3D, W]", "3D", x_argument);
  if (short_bias) {
    check_parameter({op, "short_bias", *short_bias}, 1, x.sym_size(-1), "[3D]", "3D", x_argument);
  }
  check_parameter({op, "coeffs", coeffs}, 2, channels, "[D, N]", "D", x_argument);
  check_parameter({op, "decay", decay}, 1, channels, "[D]", "D", x_argument);
  check_parameter({op, "skip", skip}, 1, channels, "[D]", "D", x_argument);
}

// The sizes of the result: those of x with a third of its channels.
c10::SymDimVector output_sizes(const at::Tensor& x) {
  c10::SymDimVector sizes(x.sym_sizes());
  sizes.back() = sizes.back() / 3;
  return sizes;
}

}  // namespace

void check_hyena_mixer_arguments(const HyenaMixerArguments& arguments) {
  check_arguments("hyena_mixer", arguments);
}

void check_hyena_mixer_backward_arguments(const HyenaMixerBackwardArguments& arguments) {
  const char* op = "hyena_mixer_backward";
  const auto& [grad, forward, needs_grad, states] = arguments;
  check_arguments(op, forward);
  const at::Tensor& x = forward.x;
  const char* layout = forward.offsets ? "[total, D]" : "[B, L, D]";
  const Argument grad_argument{op, "grad", grad};
  const Argument x_argument{op, "x", x};
  check_rank(grad_argument, x.dim(), layout);
  const auto sizes = output_sizes(x);
  for (int64_t dim = 0; dim < x.dim(); ++dim) {
    TORCH_SYM_CHECK(
        grad.sym_size(dim).sym_eq(sizes[dim]), op, ": grad must be ", layout, ", ",
        c10::SymIntArrayRef(sizes), ", got ", grad.sym_sizes());
  }
  check_type(grad_argument, x.scalar_type(), "like x");
  check_device(grad_argument, x_argument);
  if (states) check_legendre_states(op, *states, x, forward.coeffs, forward.horizon, forward.offsets);
}

}  // namespace detail

namespace {

at::Tensor hyena_mixer_meta(const HyenaMixerArguments& arguments) {
  detail::check_hyena_mixer_arguments(arguments);
  return at::empty_symint(detail::output_sizes(arguments.x), arguments.x.options());
}

std::tuple<at::Tensor, at::Tensor> hyena_mixer_with_states_meta(const HyenaMixerArguments& arguments) {
  return {
      hyena_mixer_meta(arguments),
      detail::empty_legendre_states(arguments.x, arguments.coeffs, arguments.horizon, arguments.offsets)};
}

HyenaMixerGradients hyena_mixer_backward_meta(const HyenaMixerBackwardArguments& arguments) {
  detail::check_hyena_mixer_backward_arguments(arguments);
  const auto& [x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets] = arguments.forward;
  const auto& needs_grad = arguments.needs_grad;
  return {
      detail::empty_gradient(needs_grad[0], x),
      detail::empty_gradient(needs_grad[1], short_weight),
      detail::empty_gradient(needs_grad[2] && short_bias, short_bias.value_or(short_weight)),
      detail::empty_gradient(needs_grad[3], coeffs),
      detail::empty_gradient(needs_grad[4], decay),
      detail::empty_gradient(needs_grad[5], skip)};
}

}  // namespace

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

TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("hyena_mixer", detail::unpacked<HyenaMixerSignature, hyena_mixer_meta>);
  m.impl("hyena_mixer_with_states", detail::unpacked<HyenaMixerWithStates, hyena_mixer_with_states_meta>);
  m.impl("hyena_mixer_backward", detail::unpacked<HyenaMixerBackward, hyena_mixer_backward_meta>);
}

}  // namespace hyenarec
