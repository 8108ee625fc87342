// Device code of legendre_step: one event after another of each stream, a thread a channel.
//
// A step is a handful of operations on each number of the state, which it must read anyway: N + C / 2 rows of
// D numbers a stream, in coalesced accesses. So the kernel is written to be read. Only at the end of a chunk
// do the threads of a block need each other, for the polynomials at the chunk's events.
#pragma once

#include "../common/cuda/activation.cuh"
#include "../legendre_scan/cuda/layout.cuh"
#include "../legendre_scan/math.h"
#include "layout.h"

namespace hyenarec {

constexpr int kLegendreStepThreads = 64;  // channels of a block, a tile; at least the events of a chunk

__host__ __device__ inline int64_t step_tiles(const LegendreStepWork& work) {
  return ceil_div(work.channels, kLegendreStepThreads);
}

// What all events so far contribute to event j of the chunk that begins at `start`.
template <typename T>
__device__ inline T step_output(
    const LegendreStepWork& work, const LegendreStepRows<T>& channel, int64_t start, int64_t j) {
  const int64_t pitch = channel.pitch;
  T sum = T(0);
  if (start > 0) {
    const double place = legendre_position(j, work.horizon - start);
    double current = 1, previous = 0;
    for (int64_t n = 0; n < work.num_coeffs; ++n) {
      sum += static_cast<T>(current) * channel.coefficients[n * pitch];
      const double next = legendre_next(n, place, current, previous);
      previous = current;
      current = next;
    }
    sum *= channel.decay_from_start[j * pitch];
  }
  for (int64_t lag = 0; lag <= j; ++lag) sum += channel.near[lag * pitch] * channel.events[(j - lag) * pitch];
  return sum;
}

// Restricts the state to the horizon behind chunk `index`, and multiplies the chunk's events as its end sees
// them; both in place.
template <typename T>
__device__ inline void step_leave_chunk(
    const LegendreStepWork& work, const ScanTables<T>& tables, const LegendreStepRows<T>& channel,
    int64_t index) {
  const int64_t pitch = channel.pitch;
  const T step = channel.decay_from_start[work.chunk * pitch],
          chunk_decay_change = channel.chunk_decay_change[0];
  const T* change = tables.restriction_change(index);
  for (int64_t p = 0; p < work.num_coeffs; ++p) {  // upper triangular: row p needs no row before it
    T& coefficient = channel.coefficients[p * pitch];
    T sum = T(0);
    for (int64_t m = p; m < work.num_coeffs && index > 0; ++m)
      sum += change[p * tables.pitch + m] * channel.coefficients[m * pitch];
    coefficient = index > 0 ? coefficient + (chunk_decay_change * coefficient + step * sum) : T(0);
  }
  for (int64_t j = 0; j < work.chunk; ++j)
    channel.events[j * pitch] *= channel.decay_from_start[(work.chunk - j) * pitch];
}

// Takes the finished chunk `index` into the state. All threads of the block take part; those beyond the
// channels only evaluate polynomials: thread j has P_q at event j.
template <typename T>
__device__ inline void step_finish_chunk(
    const LegendreStepWork& work, const ScanTables<T>& tables, const LegendreStepRows<T>& channel,
    bool is_inside, int64_t index, T* basis) {
  const int64_t pitch = channel.pitch, event = threadIdx.x;
  if (is_inside) step_leave_chunk(work, tables, channel, index);
  const ScanChunkShape shape = tables.shapes[index];
  const T* transfer = tables.contraction + shape.transfer * work.num_coeffs;
  const double place = legendre_position(event, work.chunk);
  double current = 1, previous = 0;
  for (int64_t q = 0; q < shape.num_moments; ++q) {
    __syncthreads();  // the last degree has been used
    if (event < work.chunk) {
      basis[event] = static_cast<T>(current);
      const double next = legendre_next(q, place, current, previous);
      previous = current;
      current = next;
    }
    __syncthreads();
    if (!is_inside) continue;
    T moment = T(0);
    for (int64_t j = 0; j < work.chunk; ++j) moment += basis[j] * channel.events[j * pitch];
    for (int64_t p = 0; p < work.num_coeffs - q; ++p) {
      T sum = T(0);
      for (int64_t n = p + q; n < work.num_coeffs; ++n) sum += transfer[n] * channel.coeffs[n * pitch];
      transfer += work.num_coeffs;
      channel.coefficients[p * pitch] += sum * moment;
    }
  }
}

// Positions aren't checked on CUDA: events beyond the horizon give NaN and leave the state alone.
template <typename scalar_t>
__global__ void __launch_bounds__(kLegendreStepThreads) legendre_step_forward(
    LegendreStepWork work, ScanTables<accumulate_t<scalar_t>> tables,
    const accumulate_t<scalar_t>* __restrict__ weights, const int64_t* __restrict__ positions,
    Activation<const scalar_t> u, Activation<const scalar_t> pre_gate, Activation<const scalar_t> post_gate,
    accumulate_t<scalar_t>* states, scalar_t* __restrict__ out) {
  using T = accumulate_t<scalar_t>;
  HYENAREC_SHARED_MEMORY(T, basis);  // [chunk]: one degree at the chunk's events
  const int64_t stream = blockIdx.x / step_tiles(work);
  const int64_t d = blockIdx.x % step_tiles(work) * kLegendreStepThreads + threadIdx.x;
  const bool is_inside = d < work.channels;
  const LegendreStepRows<T> channel(work, states, weights, stream, d);
  for (int64_t t = 0; t < work.length; ++t) {
    const int64_t position = positions[stream] + t;
    const bool is_known = position >= 0 && position < work.horizon;
    const int64_t j = is_known ? position % work.chunk : 0, start = position - j;
    if (is_inside) {
      T output = static_cast<T>(NAN);
      if (is_known) {
        channel.events[j * channel.pitch] =
            load_or_one(u, stream, t, d) * load_or_one(pre_gate, stream, t, d);
        output = step_output(work, channel, start, j) * load_or_one(post_gate, stream, t, d);
      }
      out[(stream * work.length + t) * work.channels + d] = static_cast<scalar_t>(output);
    }
    // The same for all threads of the block.
    const bool is_finished = is_known && j + 1 == work.chunk && position + 1 < work.horizon;
    if (is_finished && work.num_coeffs > 0)
      step_finish_chunk(work, tables, channel, is_inside, start / work.chunk, basis);
  }
}
template <typename T>
LaunchShape legendre_step_shape(const LegendreStepWork& work) {
  return {
      work.streams * step_tiles(work), dim3(kLegendreStepThreads),
      static_cast<size_t>(work.chunk) * sizeof(T)};
}

}  // namespace hyenarec
