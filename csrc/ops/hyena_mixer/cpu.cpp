#include "cpu.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
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
  at::Tensor offsets, x, taps, biases;  // taps [W, 3D]
  int64_t horizon;
  Sequences sequences;
  scan::ParameterTensors parameters;

  Inputs(const char* op, const HyenaMixerArguments& arguments)
      : offsets(contiguous_or_undefined(arguments.offsets)),
        x(readable(arguments.x)),
        taps(arguments.short_weight.t().contiguous()),
        biases(
            arguments.short_bias ? arguments.short_bias->contiguous()
                                 : at::zeros({taps.size(1)}, taps.options())),
        horizon(arguments.horizon.expect_int()),
        sequences(make_sequences(op, x, offsets, horizon)),
        parameters(arguments.coeffs, arguments.decay, arguments.skip) {}

  template <typename scalar_t>
  HyenaMixerRows<memory_t<scalar_t>, at::opmath_type<scalar_t>> rows() const {
    HyenaMixerRows<memory_t<scalar_t>, at::opmath_type<scalar_t>> rows{};
    rows.sequences = sequences;
    rows.channels = parameters.coeffs.size(0);
    rows.width = taps.size(0);
    rows.taps = taps.const_data_ptr<at::opmath_type<scalar_t>>();
    rows.biases = biases.const_data_ptr<at::opmath_type<scalar_t>>();
    rows.x = rows_of<scalar_t>(x);
    return rows;
  }
};

void check_values(const char* op, const HyenaMixerArguments& arguments) {
  detail::check_cpu_activation_type({op, "x", arguments.x});
  detail::check_decay_values(op, arguments.decay);
}

// `states` takes what the backward pass needs; undefined: nothing will.
at::Tensor mix(const HyenaMixerArguments& arguments, const at::Tensor& states) {
  constexpr const char* op = "hyena_mixer";
  check_values(op, arguments);
  const Inputs inputs(op, arguments);
  auto out_sizes = arguments.x.sizes().vec();
  out_sizes.back() = arguments.coeffs.size(0);
  auto out = at::empty(out_sizes, arguments.x.options());
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
          return HyenaMixerIO<decltype(lanes), memory_t<scalar_t>>(rows, call.chunk(), task, nullptr);
        });
  });
  return out;
}

at::Tensor hyena_mixer_cpu(const HyenaMixerArguments& arguments) {
  detail::check_hyena_mixer_arguments(arguments);
  return mix(arguments, {});
}

std::tuple<at::Tensor, at::Tensor> hyena_mixer_with_states_cpu(const HyenaMixerArguments& arguments) {
  detail::check_hyena_mixer_arguments(arguments);
  const auto states =
      detail::empty_legendre_states(arguments.x, arguments.coeffs, arguments.horizon, arguments.offsets);
  return {mix(arguments, states), states};
}

HyenaMixerGradients hyena_mixer_backward_cpu(const HyenaMixerBackwardArguments& arguments) {
  constexpr const char* op = "hyena_mixer_backward";
  detail::check_hyena_mixer_backward_arguments(arguments);
  const auto& [grad, forward, needs_grad, given_states] = arguments;
  check_values(op, forward);
  const Inputs inputs(op, forward);
  const auto grads = readable(grad);
  auto x_grad = detail::empty_gradient(needs_grad[0], forward.x);
  auto weight_grad = detail::empty_gradient(needs_grad[1], forward.short_weight);
  auto bias_grad = detail::empty_gradient(needs_grad[2] && forward.short_bias, inputs.biases);
  auto coeffs_grad = detail::empty_gradient(needs_grad[3], forward.coeffs);
  auto decay_grad = detail::empty_gradient(needs_grad[4], forward.decay);
  auto skip_grad = detail::empty_gradient(needs_grad[5], forward.skip);
  const bool through_filter = needs_grad[0] || needs_grad[1] || (needs_grad[2] && forward.short_bias);
  const GradientMask wanted{through_filter, through_filter, needs_grad[3] || needs_grad[4] || needs_grad[5]};

  auto states = given_states ? given_states->contiguous() : at::Tensor();
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, forward.x.scalar_type(), op, [&] {
    using compute_t = at::opmath_type<scalar_t>;
    auto rows = inputs.rows<scalar_t>();
    rows.grad = rows_of<scalar_t>(grads);
    rows.x_grad = rows_of_result<scalar_t>(x_grad);
    rows.past_cache = scan::go_past_cache({scan::result_of(x_grad)});
    const auto parameters = inputs.parameters.arguments<compute_t>(inputs.horizon);
    scan::ScanCall<compute_t> call(all_threads(), inputs.sequences, parameters);
    if (!states.defined() && call.reads_states(wanted))
      states = std::get<1>(hyena_mixer_with_states_cpu(forward));
    auto sums = call.make_sums(rows.sum_rows());
    call.backward(
        wanted, scan::saved_states_of<compute_t>(states),
        {scan::gradient_of<compute_t>(coeffs_grad), scan::gradient_of<compute_t>(decay_grad),
         scan::gradient_of<compute_t>(skip_grad)},
        [&](auto lanes, const scan::Task& task) HYENAREC_INLINE_LAMBDA {
          return HyenaMixerIO<decltype(lanes), memory_t<scalar_t>>(rows, call.chunk(), task, &sums);
        });
    auto* const weights = scan::gradient_of<compute_t>(weight_grad);
    auto* const biases = scan::gradient_of<compute_t>(bias_grad);
    if (weights || biases) store_filter_grads(call, sums, rows, weights, biases);
  });
  return {x_grad, weight_grad, bias_grad, coeffs_grad, decay_grad, skip_grad};
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("hyena_mixer", detail::unpacked<HyenaMixerSignature, hyena_mixer_cpu>);
  m.impl("hyena_mixer_with_states", detail::unpacked<HyenaMixerWithStates, hyena_mixer_with_states_cpu>);
  m.impl("hyena_mixer_backward", detail::unpacked<HyenaMixerBackward, hyena_mixer_backward_cpu>);
}

}  // namespace hyenarec
