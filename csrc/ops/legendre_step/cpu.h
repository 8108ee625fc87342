// legendre_step on the CPU: rows of channels, vectorised along them. See ../legendre_scan/tables.h for the
// mathematics. Only the last step of a chunk needs the tables: within it the state's polynomial is evaluated
// at one time, for which its basis costs N operations for all channels. No torch here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/cpu/rows.h"
#include "../common/cpu/simd.h"
#include "../legendre_scan/cpu/chunk.h"
#include "../legendre_scan/math.h"
#include "../legendre_scan/tables.h"
#include "layout.h"

namespace hyenarec::step {

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

// basis[n] = P_n at event j of a chunk that starts with `remaining` events of the horizon left.
// Not inlined: its numbers are then those of a machine without fused multiply-adds, the same everywhere.
template <typename scalar_t>
__attribute__((noinline)) void fill_basis(int64_t j, int64_t remaining, std::vector<scalar_t>& basis) {
  const double place = legendre_position(j, remaining);
  double current = 1.0, previous = 0.0;
  for (size_t n = 0; n < basis.size(); ++n) {
    basis[n] = static_cast<scalar_t>(current);
    const double next = legendre_next(static_cast<int64_t>(n), place, current, previous);
    previous = current;
    current = next;
  }
}

// sum[d] = what all events so far contribute to event j of the chunk, which is already in state.events, for
// `vectors` vectors V of channels from d on: several sums that don't wait for each other. An empty basis: the
// first chunk, with nothing before it.
template <int vectors, typename V, typename scalar_t>
HYENAREC_INLINE void convolve_channels(
    const LegendreStepRows<scalar_t>& rows, const std::vector<scalar_t>& basis, int64_t j, int64_t d,
    scalar_t* sum) {
  constexpr int lanes = simd::kLanes<V>;
  V totals[vectors] = {};
  for (size_t n = 0; n < basis.size(); ++n) {
    const scalar_t* coefficients = rows.coefficients + n * rows.pitch + d;
    for (int v = 0; v < vectors; ++v) totals[v] += basis[n] * simd::load<lanes>(coefficients + v * lanes);
  }
  const scalar_t* decay = rows.decay_from_start + j * rows.pitch + d;
  for (int v = 0; v < vectors; ++v) totals[v] *= simd::load<lanes>(decay + v * lanes);
  for (int64_t lag = 0; lag <= j; ++lag) {
    const scalar_t* near = rows.near + lag * rows.pitch + d;
    const scalar_t* events = rows.events + (j - lag) * rows.pitch + d;
    for (int v = 0; v < vectors; ++v)
      totals[v] += simd::load<lanes>(near + v * lanes) * simd::load<lanes>(events + v * lanes);
  }
  for (int v = 0; v < vectors; ++v) simd::store(totals[v], sum + d + v * lanes);
}

// The same for all channels.
template <typename V, typename scalar_t>
HYENAREC_INLINE void convolve(
    const LegendreStepRows<scalar_t>& rows, const std::vector<scalar_t>& basis, int64_t j, scalar_t* sum) {
  constexpr int lanes = simd::kLanes<V>, vectors = 4;
  const int64_t channels = rows.pitch;
  int64_t d = 0;
  for (; d + vectors * lanes <= channels; d += vectors * lanes)
    convolve_channels<vectors, V>(rows, basis, j, d, sum);
  simd::for_each_vector<lanes>(d, channels, [&](int64_t first, auto rest) HYENAREC_INLINE_LAMBDA {
    convolve_channels<1, simd::Vector<scalar_t, rest>>(rows, basis, j, first, sum);
  });
}

// Takes the finished chunk into the state, all in place: restrict what was there to the remaining horizon,
// then add the chunk's moments, transferred. `scratch` holds two rows.
template <typename scalar_t>
HYENAREC_INLINE void finish_chunk(
    const LegendreStepWork& work, const LegendreChunk<scalar_t>& tables, const scalar_t* basis, bool is_first,
    const LegendreStepRows<scalar_t>& rows, scalar_t* scratch) {
  const int64_t num_coeffs = work.num_coeffs, chunk = work.chunk, channels = work.channels;
  scalar_t* sum = scratch;
  scalar_t* moment = scratch + channels;
  const scalar_t* step = rows.decay_from_start + chunk * channels;
  if (is_first) std::fill(rows.coefficients, rows.coefficients + num_coeffs * channels, scalar_t(0));
  for (int64_t p = 0; p < num_coeffs && !is_first; ++p) {  // upper triangular: row p needs no row before it
    std::fill(sum, sum + channels, scalar_t(0));
    for (int64_t m = p; m < num_coeffs; ++m)
      add_scaled(
          tables.restriction_change[p * num_coeffs + m], rows.coefficients + m * channels, channels, sum);
    scalar_t* row = rows.coefficients + p * channels;
    for (int64_t d = 0; d < channels; ++d) row[d] += rows.chunk_decay_change[d] * row[d] + step[d] * sum[d];
  }
  for (int64_t j = 0; j < chunk; ++j) {  // events as the chunk's end sees them
    const scalar_t* decay_to_end = rows.decay_from_start + (chunk - j) * channels;
    scalar_t* event = rows.events + j * channels;
    for (int64_t d = 0; d < channels; ++d) event[d] *= decay_to_end[d];
  }
  const scalar_t* transfer = tables.transfer.data();
  for (int64_t q = 0; q < tables.num_moments; ++q) {
    std::fill(moment, moment + channels, scalar_t(0));
    for (int64_t j = 0; j < chunk; ++j)
      add_scaled(basis[q * chunk + j], rows.events + j * channels, channels, moment);
    scan::in_runs(num_coeffs - q, [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
      for (int64_t i = 0; i < run(); ++i) {
        std::fill(sum, sum + channels, scalar_t(0));
        for (int64_t n = first + i + q; n < num_coeffs; ++n)
          add_scaled(transfer[(n - first - q) * run() + i], rows.coeffs + n * channels, channels, sum);
        add_product(sum, moment, channels, rows.coefficients + (first + i) * channels);
      }
      transfer += (num_coeffs - first - q) * run();
    });
  }
}

// to[d] = from[d] gate[d], between types; V: vectors of the numbers that are computed with.
template <typename V, typename to_t, typename from_t, typename gate_t>
HYENAREC_INLINE void multiply_gate(const from_t* from, const gate_t* gate, int64_t channels, to_t* to) {
  for (int64_t d = 0; d < channels; d += simd::kLanes<V>) {
    const int64_t count = std::min<int64_t>(channels - d, simd::kLanes<V>);
    V value = simd::load_first<V>(from + d, count);
    if (gate) value *= simd::load_first<V>(gate + d, count);
    simd::store_first(value, to + d, count);
  }
}

// The events [B, L, D] of an activation, which a gate need not have.
template <typename scalar_t>
const scalar_t* event(const Rows<const scalar_t>& events, int64_t stream, int64_t t) {
  return events.data ? events.row(t) + stream * events.sequence_stride : nullptr;
}

// One event of one stream, `position` events after its first. `scratch` holds two rows. The basis is computed
// outside the vector code: its numbers are the same on every machine, with fused multiply-adds or without.
template <typename scalar_t, typename param_t>
void step(
    const LegendreStepWork& work, const LegendreStepRows<param_t>& rows, int64_t position, const scalar_t* u,
    const scalar_t* pre_gate, const scalar_t* post_gate, std::vector<param_t>& basis, param_t* scratch,
    scalar_t* out) {
  const auto [streams, length, channels, horizon, num_coeffs, chunk] = work;
  const int64_t j = position % chunk, start = position - j, next = start + chunk;
  const bool is_finished = j + 1 == chunk && next < horizon && num_coeffs > 0;
  basis.resize(start > 0 ? num_coeffs : 0);
  fill_basis(j, horizon - start, basis);
  const auto tables = is_finished ? legendre_tables<param_t>(horizon, chunk, num_coeffs, horizon) : nullptr;
  simd::run_with_widest_vectors([&](auto bytes) HYENAREC_INLINE_LAMBDA {
    using V = simd::Vector<param_t, bytes() / sizeof(param_t)>;
    multiply_gate<V>(u, pre_gate, rows.pitch, rows.events + j * rows.pitch);
    convolve<V>(rows, basis, j, scratch);
    multiply_gate<V>(scratch, post_gate, rows.pitch, out);
    if (is_finished)
      finish_chunk(work, tables->chunks[start / chunk], tables->basis.data(), start == 0, rows, scratch);
  });
}

// All events of the streams [first, last), from `positions` on; out [B, L, D].
template <typename scalar_t, typename param_t>
void step_streams(
    const LegendreStepWork& work, int64_t first, int64_t last, const int64_t* positions,
    const Rows<const scalar_t>& u, const Rows<const scalar_t>& pre_gate,
    const Rows<const scalar_t>& post_gate, const param_t* weights, param_t* states, scalar_t* out) {
  std::vector<param_t> scratch(2 * work.channels), basis;
  for (int64_t b = first; b < last; ++b) {
    const LegendreStepRows<param_t> rows(work, states, weights, b);
    for (int64_t t = 0; t < work.length; ++t) {
      step(
          work, rows, positions[b] + t, event(u, b, t), event(pre_gate, b, t), event(post_gate, b, t), basis,
          scratch.data(), out + (b * work.length + t) * work.channels);
    }
  }
}

}  // namespace hyenarec::step
