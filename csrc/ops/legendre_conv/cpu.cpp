#include "cpu.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../common/argument_checks.h"
#include "../common/cpu/tensors.h"
#include "../legendre_scan/cpu/saved_states.h"
#include "../legendre_scan/cpu/scan_tensors.h"
#include "arguments.h"

namespace hyenarec {
namespace {

// What both directions read.
struct Inputs {
  at::Tensor offsets, u, pre_gate, post_gate;
  int64_t horizon;
  Sequences sequences;
  scan::ParameterTensors parameters;

  Inputs(const char* op, const LegendreConvArguments& arguments)
      : offsets(contiguous_or_undefined(arguments.offsets)),
        u(readable(arguments.u)),
        pre_gate(readable(arguments.pre_gate)),
        post_gate(readable(arguments.post_gate)),
        horizon(arguments.horizon.expect_int()),
        sequences(make_sequences(op, u, offsets, horizon)),
        parameters(arguments.coeffs, arguments.decay, arguments.skip) {}

  template <typename scalar_t>
  LegendreConvRows<memory_t<scalar_t>> rows() const {
    LegendreConvRows<memory_t<scalar_t>> rows{};
    rows.sequences = sequences;
    rows.u = rows_of<scalar_t>(u);
    rows.pre_gate = rows_of<scalar_t>(pre_gate);
    rows.post_gate = rows_of<scalar_t>(post_gate);
    return rows;
  }
};

void check_values(const char* op, const LegendreConvArguments& arguments) {
  detail::check_cpu_activation_type({op, "u", arguments.u});
  detail::check_decay_values(op, arguments.decay);
}

// `states` takes what the backward pass needs; undefined: nothing will.
at::Tensor convolve(const LegendreConvArguments& arguments, const at::Tensor& states) {
  constexpr const char* op = "legendre_conv";
  check_values(op, arguments);
  const Inputs inputs(op, arguments);
  auto out = at::empty(arguments.u.sizes(), arguments.u.options());
  if (out.numel() == 0) {
    if (states.defined()) states.zero_();
    return out;
  }
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, out.scalar_type(), op, [&] {
    using compute_t = at::opmath_type<scalar_t>;
    auto rows = inputs.rows<scalar_t>();
    rows.out = rows_of_result<scalar_t>(out);
    rows.past_cache = scan::go_past_cache({scan::result_of(out)});
    const auto parameters = inputs.parameters.arguments<compute_t>(inputs.horizon);
    scan::ScanCall<compute_t> call(all_threads(), inputs.sequences, parameters);
    call.forward(
        scan::states_of<compute_t>(states), [&](auto lanes, const scan::Task& task) HYENAREC_INLINE_LAMBDA {
          return LegendreConvIO<decltype(lanes), memory_t<scalar_t>>(rows, task);
        });
  });
  return out;
}

at::Tensor legendre_conv_cpu(const LegendreConvArguments& arguments) {
  detail::check_legendre_conv_arguments(arguments);
  return convolve(arguments, {});
}

std::tuple<at::Tensor, at::Tensor> legendre_conv_with_states_cpu(const LegendreConvArguments& arguments) {
  detail::check_legendre_conv_arguments(arguments);
  const auto states =
      detail::empty_legendre_states(arguments.u, arguments.coeffs, arguments.horizon, arguments.offsets);
  return {convolve(arguments, states), states};
}

LegendreConvGradients legendre_conv_backward_cpu(const LegendreConvBackwardArguments& arguments) {
  constexpr const char* op = "legendre_conv_backward";
  detail::check_legendre_conv_backward_arguments(arguments);
  const auto& [grad, forward, needs_grad, given_states] = arguments;
  check_values(op, forward);
  const Inputs inputs(op, forward);
  const auto grads = readable(grad);
  auto u_grad = detail::empty_gradient(needs_grad[0], forward.u);
  auto coeffs_grad = detail::empty_gradient(needs_grad[1], forward.coeffs);
  auto decay_grad = detail::empty_gradient(needs_grad[2], forward.decay);
  auto skip_grad = detail::empty_gradient(needs_grad[3] && forward.skip, forward.decay);
  auto pre_gate_grad = detail::empty_gradient(needs_grad[4] && forward.pre_gate, forward.u);
  auto post_gate_grad = detail::empty_gradient(needs_grad[5] && forward.post_gate, forward.u);
  const GradientMask wanted{
      needs_grad[0] || (needs_grad[4] && forward.pre_gate), needs_grad[5] && forward.post_gate,
      needs_grad[1] || needs_grad[2] || (needs_grad[3] && forward.skip)};

  auto states = given_states ? given_states->contiguous() : at::Tensor();
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, forward.u.scalar_type(), op, [&] {
    using compute_t = at::opmath_type<scalar_t>;
    auto rows = inputs.rows<scalar_t>();
    rows.grad = rows_of<scalar_t>(grads);
    rows.u_grad = rows_of_result<scalar_t>(u_grad);
    rows.pre_gate_grad = rows_of_result<scalar_t>(pre_gate_grad);
    rows.post_gate_grad = rows_of_result<scalar_t>(post_gate_grad);
    rows.past_cache = scan::go_past_cache(
        {scan::result_of(u_grad), scan::result_of(pre_gate_grad), scan::result_of(post_gate_grad)});
    const auto parameters = inputs.parameters.arguments<compute_t>(inputs.horizon);
    scan::ScanCall<compute_t> call(all_threads(), inputs.sequences, parameters);
    if (!states.defined() && call.reads_states(wanted))
      states = std::get<1>(legendre_conv_with_states_cpu(forward));
    call.backward(
        wanted, scan::saved_states_of<compute_t>(states),
        {scan::gradient_of<compute_t>(coeffs_grad), scan::gradient_of<compute_t>(decay_grad),
         scan::gradient_of<compute_t>(skip_grad)},
        [&](auto lanes, const scan::Task& task) HYENAREC_INLINE_LAMBDA {
          return LegendreConvIO<decltype(lanes), memory_t<scalar_t>>(rows, task);
        });
  });
  return {u_grad, coeffs_grad, decay_grad, skip_grad, pre_gate_grad, post_gate_grad};
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("legendre_conv", detail::unpacked<LegendreConvSignature, legendre_conv_cpu>);
  m.impl(
      "legendre_conv_with_states", detail::unpacked<LegendreConvWithStates, legendre_conv_with_states_cpu>);
  m.impl("legendre_conv_backward", detail::unpacked<LegendreConvBackward, legendre_conv_backward_cpu>);
}

}  // namespace hyenarec
