#include "cpu.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "../common/cpu/tensors.h"
#include "arguments.h"

namespace hyenarec {
namespace {

constexpr int64_t kThreadElements = 65536;  // multiply-adds below which a thread costs more than it saves

void check_positions(const at::Tensor& positions, int64_t length, int64_t horizon) {
  const auto* values = positions.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < positions.size(0); ++b) {
    TORCH_CHECK(
        0 <= values[b] && values[b] <= horizon - length, "legendre_step: position must be from 0 to ",
        horizon - length, ", so that the stream ends within the horizon = ", horizon, ", got ", values[b],
        " for stream ", b);
  }
}

at::Tensor legendre_step_cpu(const LegendreStepArguments& arguments) {
  const auto& [state, u, position, weights, sym_horizon, pre_gate, post_gate] = arguments;
  const auto sizes = arguments.sizes();
  const int64_t horizon = sym_horizon.expect_int();
  detail::check_cpu_activation_type({"legendre_step", "u", u});
  const auto events = detail::legendre_step_events(u);
  const auto pre_gates = detail::legendre_step_events(pre_gate);
  const auto post_gates = detail::legendre_step_events(post_gate);
  const auto positions = position.contiguous(), rows = weights.contiguous();
  const int64_t length = events.size(1), channels = events.size(2);
  check_positions(positions, length, horizon);
  auto out = at::empty(u.sizes(), u.options());
  if (out.numel() == 0) return out;

  const int64_t grain =
      std::max<int64_t>(kThreadElements / ((sizes.num_coeffs + sizes.chunk) * channels * length), 1);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, u.scalar_type(), "legendre_step", [&] {
    using param_t = at::opmath_type<scalar_t>;
    const step::Call<param_t> call{
        sizes, channels, horizon, step::Weights<param_t>(rows.const_data_ptr<param_t>(), sizes, channels)};
    const auto in = rows_of<scalar_t>(events), pre = rows_of<scalar_t>(pre_gates),
               post = rows_of<scalar_t>(post_gates);
    auto* out_data = reinterpret_cast<memory_t<scalar_t>*>(out.mutable_data_ptr<scalar_t>());
    const auto* first_positions = positions.const_data_ptr<int64_t>();
    auto* states = arguments.state.mutable_data_ptr<param_t>();
    at::parallel_for(0, u.size(0), grain, [&](int64_t first, int64_t last) {
      step::step_streams(call, first, last, length, first_positions, in, pre, post, states, out_data);
    });
  });
  return out;
}

at::Tensor legendre_step_weights_cpu(const LegendreStepWeightsArguments& arguments) {
  detail::check_decay_values("legendre_step_weights", arguments.decay);
  const int64_t num_coeffs = arguments.coeffs.size(1), horizon = arguments.horizon.expect_int();
  AT_DISPATCH_FLOATING_TYPES(arguments.coeffs.scalar_type(), "legendre_step_weights", [&] {
    if (num_coeffs > 0)
      legendre_tables<scalar_t>(horizon, legendre_chunk_length(num_coeffs), num_coeffs, horizon);
  });
  return detail::make_legendre_step_weights(arguments);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("legendre_step_weights", detail::checked<legendre_step_weights_cpu>);
  m.impl("legendre_step", detail::checked<legendre_step_cpu>);
}

}  // namespace hyenarec
