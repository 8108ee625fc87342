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

void check_positions(const int64_t* positions, const LegendreStepWork& work) {
  const int64_t most = work.horizon - work.length;
  for (int64_t b = 0; b < work.streams; ++b) {
    TORCH_CHECK(
        0 <= positions[b] && positions[b] <= most, "legendre_step: position must be from 0 to ", most,
        ", so that the stream ends within the horizon = ", work.horizon, ", got ", positions[b],
        " for stream ", b);
  }
}

at::Tensor legendre_step_cpu(const LegendreStepArguments& arguments) {
  const auto& u = arguments.u;
  detail::check_cpu_activation_type({"legendre_step", "u", u});
  const LegendreStepInputs in(arguments);
  const auto& work = in.work;
  const auto* positions = in.positions.const_data_ptr<int64_t>();
  check_positions(positions, work);
  auto out = at::empty(u.sizes(), u.options());
  if (out.numel() == 0) return out;

  const int64_t grain = std::max<int64_t>(kThreadElements / (work.state_size() * work.length), 1);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, u.scalar_type(), "legendre_step", [&] {
    using param_t = at::opmath_type<scalar_t>;
    const auto events = rows_of<scalar_t>(in.u), pre_gate = rows_of<scalar_t>(in.pre_gate),
               post_gate = rows_of<scalar_t>(in.post_gate);
    const auto* weights = in.weights.const_data_ptr<param_t>();
    auto* states = arguments.state.mutable_data_ptr<param_t>();
    auto* out_data = reinterpret_cast<memory_t<scalar_t>*>(out.mutable_data_ptr<scalar_t>());
    at::parallel_for(0, work.streams, grain, [&](int64_t first, int64_t last) {
      step::step_streams(
          work, first, last, positions, events, pre_gate, post_gate, weights, states, out_data);
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
