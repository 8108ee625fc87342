#include "hyena_mixer.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../common/argument_checks.h"
#include "../legendre_scan/states.h"

namespace hyenarec {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor hyena_mixer(
    const at::Tensor& x,
    const at::Tensor& short_weight,
    const OptionalTensor& short_bias,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const at::Tensor& skip,
    const OptionalTensor& offsets) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("hyenarec::hyena_mixer", "")
                             .typed<decltype(hyena_mixer)>();
  return op.call(x, short_weight, short_bias, coeffs, decay, std::move(horizon), skip, offsets);
}

std::tuple<at::Tensor, at::Tensor> hyena_mixer_with_states(
    const at::Tensor& x,
    const at::Tensor& short_weight,
    const OptionalTensor& short_bias,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const at::Tensor& skip,
    const OptionalTensor& offsets) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("hyenarec::hyena_mixer_with_states", "")
                             .typed<decltype(hyena_mixer_with_states)>();
  return op.call(x, short_weight, short_bias, coeffs, decay, std::move(horizon), skip, offsets);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> hyena_mixer_backward(
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& short_weight,
    const OptionalTensor& short_bias,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const at::Tensor& skip,
    const OptionalTensor& offsets,
    std::array<bool, 6> needs_grad,
    const OptionalTensor& states) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("hyenarec::hyena_mixer_backward", "")
                             .typed<decltype(hyena_mixer_backward)>();
  return op.call(
      grad, x, short_weight, short_bias, coeffs, decay, std::move(horizon), skip, offsets, needs_grad,
      states);
}

namespace detail {
namespace {

void check_arguments(
    const char* op,
    const at::Tensor& x,
    const at::Tensor& short_weight,
    const OptionalTensor& short_bias,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    const c10::SymInt& horizon,
    const at::Tensor& skip,
    const OptionalTensor& offsets) {
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

void check_hyena_mixer_arguments(
    const at::Tensor& x,
    const at::Tensor& short_weight,
    const OptionalTensor& short_bias,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    const c10::SymInt& horizon,
    const at::Tensor& skip,
    const OptionalTensor& offsets) {
  check_arguments("hyena_mixer", x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets);
}

void check_hyena_mixer_backward_arguments(
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& short_weight,
    const OptionalTensor& short_bias,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    const c10::SymInt& horizon,
    const at::Tensor& skip,
    const OptionalTensor& offsets,
    const OptionalTensor& states) {
  const char* op = "hyena_mixer_backward";
  check_arguments(op, x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets);
  const char* layout = offsets ? "[total, D]" : "[B, L, D]";
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
  if (states) check_legendre_states(op, *states, x, coeffs, horizon, offsets);
}

}  // namespace detail

namespace {

at::Tensor hyena_mixer_meta(
    const at::Tensor& x,
    const at::Tensor& short_weight,
    const OptionalTensor& short_bias,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const at::Tensor& skip,
    const OptionalTensor& offsets) {
  detail::check_hyena_mixer_arguments(x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets);
  return at::empty_symint(detail::output_sizes(x), x.options());
}

std::tuple<at::Tensor, at::Tensor> hyena_mixer_with_states_meta(
    const at::Tensor& x,
    const at::Tensor& short_weight,
    const OptionalTensor& short_bias,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const at::Tensor& skip,
    const OptionalTensor& offsets) {
  const auto out = hyena_mixer_meta(x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets);
  return {out, detail::empty_legendre_states(x, coeffs, horizon, offsets)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> hyena_mixer_backward_meta(
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& short_weight,
    const OptionalTensor& short_bias,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const at::Tensor& skip,
    const OptionalTensor& offsets,
    std::array<bool, 6> needs_grad,
    const OptionalTensor& states) {
  detail::check_hyena_mixer_backward_arguments(
      grad, x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets, states);
  return {
      detail::empty_gradient(needs_grad[0], x),
      detail::empty_gradient(needs_grad[1], short_weight),
      detail::empty_gradient(needs_grad[2] && short_bias, short_bias.value_or(short_weight)),
      detail::empty_gradient(needs_grad[3], coeffs),
      detail::empty_gradient(needs_grad[4], decay),
      detail::empty_gradient(needs_grad[5], skip)};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("hyena_mixer", hyenarec::hyena_mixer_meta);
  m.impl("hyena_mixer_with_states", hyenarec::hyena_mixer_with_states_meta);
  m.impl("hyena_mixer_backward", hyenarec::hyena_mixer_backward_meta);
}
