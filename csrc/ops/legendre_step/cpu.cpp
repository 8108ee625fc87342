// legendre_step on the CPU: rows of channels, vectorised along them, streams shared among the threads. See
// legendre_tables.h for the mathematics. Only the last step of a chunk needs the tables: within it the state's
// polynomial is evaluated at one time, for which its basis costs N operations for all channels.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../common/argument_checks.h"
#include "../common/cpu/simd.h"
#include "../legendre_scan/cpu/stages.h"
#include "../legendre_scan/math.h"
#include "../legendre_scan/tables.h"
#include "legendre_step.h"

namespace hyenarec {
namespace {

using detail::LegendreStepSizes;

constexpr int64_t kThreadElements = 65536;  // multiply-adds below which a thread costs more than it saves

// sum[d] += factor row[d]
template <typename scalar_t>
HYENAREC_INLINE void add_scaled(scalar_t factor, const scalar_t* row, int64_t channels, scalar_t* sum) {
  for (int64_t d = 0; d < channels; ++d) sum[d] += factor * row[d];
}

// sum[d] += a[d] b[d]
template <typename scalar_t>
HYENAREC_INLINE void add_product(const scalar_t* a, const scalar_t* b, int64_t channels, scalar_t* sum) {
  for (int64_t d = 0; d < channels; ++d) sum[d] += a[d] * b[d];
}

// The parameters as legendre_step_weights lays them out; rows of `channels`.
template <typename scalar_t>
struct Weights {
  const scalar_t* coeffs;  // [N]
  const scalar_t* near;    // [C]
  const scalar_t* fade;    // [C + 1]: exp(-decay j)
  const scalar_t* drop;    // [1]: exp(-decay C) - 1

  Weights(const scalar_t* rows, LegendreStepSizes sizes, int64_t channels)
      : coeffs(rows),
        near(coeffs + sizes.num_coeffs * channels),
        fade(near + sizes.chunk * channels),
        drop(fade + (sizes.chunk + 1) * channels) {}
};

// One stream's state; rows of `channels`.
template <typename scalar_t>
struct State {
  scalar_t* coefficients;  // [N], of what all finished chunks contribute; of no meaning in the first chunk
  scalar_t* events;        // [C], of the current chunk, gated

  State(scalar_t* rows, LegendreStepSizes sizes, int64_t channels)
      : coefficients(rows), events(rows + sizes.num_coeffs * channels) {}
};

// basis[n] = P_n at event j of a chunk that starts with `remaining` events of the horizon left.
template <typename scalar_t>
void fill_basis(int64_t j, int64_t remaining, std::vector<scalar_t>& basis) {
  const double place = legendre_position(j, remaining);
  double current = 1.0, previous = 0.0;
  for (size_t n = 0; n < basis.size(); ++n) {
    basis[n] = static_cast<scalar_t>(current);
    const double next = legendre_next(static_cast<int64_t>(n), place, current, previous);
    previous = current;
    current = next;
  }
}

// sum[d] = what all events so far contribute to event j of the chunk, which is already in state.events. An
// empty basis: the first chunk, with nothing before it.
template <typename scalar_t>
HYENAREC_SIMD void convolve(
    const Weights<scalar_t>& weights,
    const State<scalar_t>& state,
    const std::vector<scalar_t>& basis,
    int64_t j,
    int64_t channels,
    scalar_t* sum) {
  std::fill(sum, sum + channels, scalar_t(0));
  for (size_t n = 0; n < basis.size(); ++n)
    add_scaled(basis[n], state.coefficients + n * channels, channels, sum);
  const scalar_t* fade = weights.fade + j * channels;
  for (int64_t d = 0; d < channels; ++d) sum[d] *= fade[d];
  for (int64_t lag = 0; lag <= j; ++lag)
    add_product(weights.near + lag * channels, state.events + (j - lag) * channels, channels, sum);
}

// Takes the finished chunk into the state, all in place: restrict what was there to the remaining horizon, then
// add the chunk's moments, transferred. `scratch` holds two rows.
template <typename scalar_t>
HYENAREC_SIMD void finish_chunk(
    const LegendreChunk<scalar_t>& tables,
    const scalar_t* basis,
    LegendreStepSizes sizes,
    bool is_first,
    const Weights<scalar_t>& weights,
    const State<scalar_t>& state,
    int64_t channels,
    scalar_t* scratch) {
  const int64_t num_coeffs = sizes.num_coeffs, chunk = sizes.chunk;
  scalar_t* sum = scratch;
  scalar_t* moment = scratch + channels;
  const scalar_t* step = weights.fade + chunk * channels;
  if (is_first) std::fill(state.coefficients, state.coefficients + num_coeffs * channels, scalar_t(0));
  for (int64_t p = 0; p < num_coeffs && !is_first; ++p) {  // upper triangular: row p needs no row before it
    std::fill(sum, sum + channels, scalar_t(0));
    for (int64_t m = p; m < num_coeffs; ++m)
      add_scaled(
          tables.restriction_change[p * num_coeffs + m], state.coefficients + m * channels, channels, sum);
    scalar_t* row = state.coefficients + p * channels;
    for (int64_t d = 0; d < channels; ++d) row[d] += weights.drop[d] * row[d] + step[d] * sum[d];
  }
  for (int64_t j = 0; j < chunk; ++j) {  // events as the chunk's end sees them
    const scalar_t* lift = weights.fade + (chunk - j) * channels;
    scalar_t* event = state.events + j * channels;
    for (int64_t d = 0; d < channels; ++d) event[d] *= lift[d];
  }
  const scalar_t* transfer = tables.transfer.data();
  for (int64_t q = 0; q < tables.num_moments; ++q) {
    std::fill(moment, moment + channels, scalar_t(0));
    for (int64_t j = 0; j < chunk; ++j)
      add_scaled(basis[q * chunk + j], state.events + j * channels, channels, moment);
    scan::in_runs(num_coeffs - q, [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
      for (int64_t i = 0; i < run(); ++i) {
        std::fill(sum, sum + channels, scalar_t(0));
        for (int64_t n = first + i + q; n < num_coeffs; ++n)
          add_scaled(transfer[(n - first - q) * run() + i], weights.coeffs + n * channels, channels, sum);
        add_product(sum, moment, channels, state.coefficients + (first + i) * channels);
      }
      transfer += (num_coeffs - first - q) * run();
    });
  }
}

// The events [B, L, D] of an activation or gate, channels side by side; no data where there is no gate.
template <typename scalar_t>
struct Events {
  const scalar_t* data = nullptr;
  int64_t stream_stride = 0, event_stride = 0;

  explicit Events(const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    data = tensor.const_data_ptr<scalar_t>();
    stream_stride = tensor.stride(0);
    event_stride = tensor.stride(1);
  }
  const scalar_t* row(int64_t stream, int64_t t) const {
    return data ? data + stream * stream_stride + t * event_stride : nullptr;
  }
};

// to[d] = from[d] gate[d], between types.
template <typename to_t, typename from_t, typename gate_t>
HYENAREC_SIMD void multiply_gate(const from_t* from, const gate_t* gate, int64_t channels, to_t* to) {
  using compute_t = at::opmath_type<to_t>;
  for (int64_t d = 0; d < channels; ++d) {
    const auto value = static_cast<compute_t>(from[d]);
    to[d] = static_cast<to_t>(gate ? value * static_cast<compute_t>(gate[d]) : value);
  }
}

void check_positions(const at::Tensor& positions, int64_t length, int64_t horizon) {
  const auto* values = positions.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < positions.size(0); ++b) {
    TORCH_CHECK(
        0 <= values[b] && values[b] <= horizon - length, "legendre_step: position must be from 0 to ",
        horizon - length, ", so that the stream ends within the horizon = ", horizon, ", got ", values[b],
        " for stream ", b);
  }
}

// What all streams and events share.
template <typename param_t>
struct Call {
  LegendreStepSizes sizes;
  int64_t channels, horizon;
  Weights<param_t> weights;
};

// One event of one stream, `position` events after its first. `scratch` holds two rows.
template <typename scalar_t, typename param_t>
void step(
    const Call<param_t>& call,
    const State<param_t>& state,
    int64_t position,
    const scalar_t* u,
    const scalar_t* pre_gate,
    const scalar_t* post_gate,
    std::vector<param_t>& basis,
    param_t* scratch,
    scalar_t* out) {
  const auto [num_coeffs, chunk] = call.sizes;
  const int64_t j = position % chunk, start = position - j, next = start + chunk;
  multiply_gate(u, pre_gate, call.channels, state.events + j * call.channels);
  basis.resize(start > 0 ? num_coeffs : 0);
  fill_basis(j, call.horizon - start, basis);
  convolve(call.weights, state, basis, j, call.channels, scratch);
  multiply_gate(scratch, post_gate, call.channels, out);
  if (j + 1 < chunk || next >= call.horizon || num_coeffs == 0) return;
  const auto tables = legendre_tables<param_t>(call.horizon, chunk, num_coeffs, call.horizon);
  finish_chunk(
      tables->chunks[start / chunk], tables->basis.data(), call.sizes, start == 0, call.weights, state,
      call.channels, scratch);
}

at::Tensor legendre_step_cpu(
    at::Tensor& state,
    const at::Tensor& u,
    const at::Tensor& position,
    const at::Tensor& weights,
    int64_t horizon,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate) {
  const auto sizes =
      detail::check_legendre_step_arguments(state, u, position, weights, horizon, pre_gate, post_gate);
  detail::check_cpu_activation_type({"legendre_step", "u", u});
  const auto events = detail::legendre_step_events(u);
  const auto pre_gates = detail::legendre_step_events(pre_gate);
  const auto post_gates = detail::legendre_step_events(post_gate);
  const auto positions = position.contiguous(), rows = weights.contiguous();
  const int64_t length = events.size(1), channels = events.size(2);
  check_positions(positions, length, horizon);
  auto out = at::empty(u.sizes(), u.options());
  if (out.numel() == 0) return out;

  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, u.scalar_type(), "legendre_step", [&] {
    using param_t = at::opmath_type<scalar_t>;
    const Call<param_t> call{
        sizes, channels, horizon, Weights<param_t>(rows.const_data_ptr<param_t>(), sizes, channels)};
    const Events<scalar_t> in(events), pre(pre_gates), post(post_gates);
    const auto* first_position = positions.const_data_ptr<int64_t>();
    auto* states = state.mutable_data_ptr<param_t>();
    auto* out_data = out.mutable_data_ptr<scalar_t>();
    const int64_t state_size = (sizes.num_coeffs + sizes.chunk) * channels;
    const int64_t grain = std::max<int64_t>(kThreadElements / (state_size * length), 1);
    at::parallel_for(0, u.size(0), grain, [&](int64_t first, int64_t last) {
      std::vector<param_t> scratch(2 * channels), basis;
      for (int64_t b = first; b < last; ++b) {
        const State<param_t> stream(states + b * state_size, sizes, channels);
        for (int64_t t = 0; t < length; ++t) {
          step(
              call, stream, first_position[b] + t, in.row(b, t), pre.row(b, t), post.row(b, t), basis,
              scratch.data(), out_data + (b * length + t) * channels);
        }
      }
    });
  });
  return out;
}

at::Tensor legendre_step_weights_cpu(
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    int64_t horizon,
    const std::optional<at::Tensor>& skip) {
  detail::check_legendre_step_weights_arguments(coeffs, decay, horizon, skip);
  detail::check_decay_values("legendre_step_weights", decay);
  const int64_t num_coeffs = coeffs.size(1);
  AT_DISPATCH_FLOATING_TYPES(coeffs.scalar_type(), "legendre_step_weights", [&] {
    if (num_coeffs > 0)
      legendre_tables<scalar_t>(horizon, legendre_chunk_length(num_coeffs), num_coeffs, horizon);
  });
  return detail::make_legendre_step_weights(coeffs, decay, horizon, skip);
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("legendre_step_weights", hyenarec::legendre_step_weights_cpu);
  m.impl("legendre_step", hyenarec::legendre_step_cpu);
}
