#include "legendre_step.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

#include "../common/autograd.h"
#include "../common/channels_last.h"
#include "../legendre_kernel/legendre_kernel.h"
#include "../legendre_scan/tables.h"
#include "arguments.h"

namespace hyenarec {

at::Tensor legendre_step_weights(
    const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon, const OptionalTensor& skip) {
  return detail::dispatch<"legendre_step_weights", at::Tensor, LegendreStepWeightsArguments>(
      {coeffs, decay, std::move(horizon), skip});
}

at::Tensor legendre_step(
    at::Tensor& state, const at::Tensor& u, const at::Tensor& position, const at::Tensor& weights,
    c10::SymInt horizon, const OptionalTensor& pre_gate, const OptionalTensor& post_gate) {
  return detail::dispatch<"legendre_step", at::Tensor, LegendreStepArguments>(
      {state, u, position, weights, std::move(horizon), pre_gate, post_gate});
}

// The same on every device.
at::Tensor legendre_step_state(const at::Tensor& coeffs, c10::SymInt batch) {
  const char* op = "legendre_step_state";
  detail::check_rank({op, "coeffs", coeffs}, 2, "[D, N]");
  TORCH_SYM_CHECK(batch.sym_ge(0), op, ": batch must be at least 0, got ", batch);
  const int64_t num_coeffs = coeffs.sym_size(1).guard_int(__FILE__, __LINE__);
  return at::zeros_symint(
      {std::move(batch), num_coeffs + legendre_chunk_length(num_coeffs), coeffs.sym_size(0)},
      coeffs.options());
}

void LegendreStepWeightsArguments::check() const {
  detail::check_kernel_parameters("legendre_step_weights", coeffs, decay, skip, horizon);
}

std::pair<int64_t, int64_t> LegendreStepArguments::sizes() const {
  const int64_t state_rows = state.sym_size(1).guard_int(__FILE__, __LINE__);
  const int64_t weight_rows = weights.sym_size(0).guard_int(__FILE__, __LINE__);
  const int64_t chunk = weight_rows - state_rows - 2;
  return {state_rows - chunk, chunk};
}

void LegendreStepArguments::check() const {
  using namespace detail;
  const char* op = "legendre_step";
  const Argument u_argument{op, "u", u};
  check_activation_type(u_argument);
  TORCH_CHECK(u.dim() == 2 || u.dim() == 3, op, ": u must be [B, D] or [B, L, D], got ", u.sym_sizes());

  const Argument position_argument{op, "position", position};
  check_rank(position_argument, 1, "[B]");
  check_size(position_argument, 0, u.sym_size(0), "[B]", "B");
  check_type(position_argument, c10::kLong, "");
  check_device(position_argument, u_argument);

  const auto type = parameter_type(u.scalar_type());
  const Argument weights_argument{op, "weights", weights}, state_argument{op, "state", state};
  check_rank(weights_argument, 2, "[N + 2 C + 2, D]");
  check_size(weights_argument, 1, u.sym_size(-1), "[N + 2 C + 2, D]", "D");
  check_type(weights_argument, type, "beside this u");
  check_device(weights_argument, u_argument);
  check_rank(state_argument, 3, "[B, N + C, D]");
  check_size(state_argument, 0, u.sym_size(0), "[B, N + C, D]", "B");
  check_size(state_argument, 2, u.sym_size(-1), "[B, N + C, D]", "D");
  check_type(state_argument, type, "beside this u");
  check_device(state_argument, u_argument);
  TORCH_CHECK(state.is_contiguous(), op, ": state must be contiguous, got strides ", state.sym_strides());
  const auto [num_coeffs, chunk] = sizes();
  TORCH_CHECK(
      num_coeffs >= 0 && chunk == legendre_chunk_length(num_coeffs), op,
      ": state and weights must be made by "
      "legendre_step_state and legendre_step_weights for the same number of coefficients, got ",
      state.sym_size(1), " and ", weights.sym_size(0), " rows");

  check_horizon(op, horizon);
  if (pre_gate) check_like({op, "pre_gate", *pre_gate}, u_argument);
  if (post_gate) check_like({op, "post_gate", *post_gate}, u_argument);
}

static at::Tensor events_of(const OptionalTensor& tensor) {
  if (!tensor) return {};
  return with_unit_channel_stride(tensor->dim() == 2 ? tensor->unsqueeze(1) : *tensor);
}

LegendreStepInputs::LegendreStepInputs(const LegendreStepArguments& arguments)
    : u(events_of(arguments.u)),
      pre_gate(events_of(arguments.pre_gate)),
      post_gate(events_of(arguments.post_gate)),
      positions(arguments.position.contiguous()),
      weights(arguments.weights.contiguous()) {
  const auto [num_coeffs, chunk] = arguments.sizes();
  work = {u.size(0), u.size(1), u.size(2), arguments.horizon.expect_int(), num_coeffs, chunk};
}

namespace detail {

at::Tensor make_legendre_step_weights(const LegendreStepWeightsArguments& arguments) {
  const auto& [coeffs, decay, sym_horizon, skip] = arguments;
  const int64_t horizon = sym_horizon.expect_int();
  const int64_t chunk = legendre_chunk_length(coeffs.size(1));
  const int64_t lags = std::min(chunk, horizon);
  auto near = at::zeros({chunk, coeffs.size(0)}, coeffs.options());
  near.slice(0, 0, lags).copy_(legendre_kernel(coeffs, decay, horizon, lags).t());
  if (skip) near.select(0, 0).add_(*skip);
  // In double, as the kernel is: a stream multiplies its state by them again and again.
  const auto rates = decay.to(at::kDouble);
  const auto decay_from_start = at::outer(at::arange(chunk + 1, rates.options()), rates.neg()).exp_();
  const auto chunk_decay_change = rates.mul(static_cast<double>(-chunk)).expm1_().unsqueeze(0);
  const auto options = coeffs.options();
  auto weights = at::cat({coeffs.t(), near, decay_from_start.to(options), chunk_decay_change.to(options)});
  // Far below rounding; as denormal numbers, in which fast decays end, they would take ten times as long.
  const double least = coeffs.scalar_type() == at::kDouble
                           ? std::numeric_limits<double>::min() / std::numeric_limits<double>::epsilon()
                           : std::numeric_limits<float>::min() / std::numeric_limits<float>::epsilon();
  return weights.masked_fill_(weights.abs().lt(least), 0);
}

}  // namespace detail

TORCH_LIBRARY_FRAGMENT(hyenarec, m) {
  m.def("legendre_step_weights(Tensor coeffs, Tensor decay, SymInt horizon, Tensor? skip=None) -> Tensor");
  m.def("legendre_step_state(Tensor coeffs, SymInt batch) -> Tensor", legendre_step_state);
  m.def(
      "legendre_step(Tensor(a!) state, Tensor u, Tensor position, Tensor weights, SymInt horizon, Tensor? "
      "pre_gate=None, Tensor? post_gate=None) -> Tensor");
}

static at::Tensor legendre_step_weights_meta(const LegendreStepWeightsArguments& arguments) {
  const at::Tensor& coeffs = arguments.coeffs;
  const int64_t num_coeffs = coeffs.sym_size(1).guard_int(__FILE__, __LINE__);
  return at::empty_symint(
      {num_coeffs + 2 * legendre_chunk_length(num_coeffs) + 2, coeffs.sym_size(0)}, coeffs.options());
}
static at::Tensor legendre_step_meta(const LegendreStepArguments& arguments) {
  return at::empty_symint(arguments.u.sym_sizes(), arguments.u.options());
}

TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("legendre_step_weights", detail::checked<legendre_step_weights_meta>);
  m.impl("legendre_step", detail::checked<legendre_step_meta>);
}

// legendre_step has no gradient, and says so instead of giving a wrong one.
static void check_no_gradient(const char* name, const OptionalTensor& tensor) {
  TORCH_CHECK(
      !tensor || !tensor->requires_grad(), "legendre_step: ", name,
      " must not require a gradient, since a step has none: call it under torch.no_grad() or "
      "torch.inference_mode(), or train with legendre_conv");
}

static at::Tensor legendre_step_autograd(const LegendreStepArguments& arguments) {
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

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("legendre_step", detail::unchecked<legendre_step_autograd>);
  m.impl("legendre_step_weights", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
