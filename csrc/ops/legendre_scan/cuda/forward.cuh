// The forward sweep of the linear-time Legendre scan (see ../tables.h) over sequences, shared by
// legendre_conv and hyena_mixer, and what both directions need of segments.
//
// A thread owns one channel of one sequence and walks its chunks of 32 events in order; the lanes of a warp
// lie along channels, so each row of a chunk is one coalesced access. The chunk and the state stay in
// registers: the near part is a triangular Toeplitz product from registers, 528 multiply-adds for 32 loaded
// taps; the polynomials at the chunk's events are constants of the program, symmetric or antisymmetric about
// its middle, so that moments and evaluation cost 16 multiply-adds a term. A block's warps make taps and
// decays together and don't talk to each other on the way forward. They hold different sequences and the same
// channels: what depends on chunk and channel, the coefficients contracted with the transfer table, is read
// from the second-level cache by the first of them and from the first-level cache by the others.
//
// Two strategies, one code. Many sequences: a warp walks a whole sequence. Few and long ones: a warp walks a
// segment of one, after legendre_scan_carry and legendre_scan_combine have found the state at its start,
// which reads the inputs once more. The backward sweep runs the same way in the other direction.
//
// Cost an element, N = 17, horizon 1,024 (9 moments and 9 local terms of 17), multiply-adds: near 16.5,
// moments and evaluation 9, restriction and local terms 8.4, transfer 3.7, decays 3; together 41. Numbers
// read an element from tables and taps: about 15. Backward is about three times the arithmetic for 7/4 of the
// bytes, plus the states (N / 32 of a float32 activation, written and read) and a second look at the inputs.
// Tensor cores are not used: the near part, the only large product, would need three tf32 products to stay
// within 1e-5 in float32.
#pragma once

#include "channel.cuh"

namespace hyenarec {

constexpr int kScanThreads = 128;  // a sweep's block, at most: four sequences
// Blocks a multiprocessor holds at least: 168 registers a thread. With 128 the compiler spills 0.3 to 1 KB a
// thread, for all threads together as much as the first-level cache holds.
constexpr int kScanBlocks = 3;

// How a sweep that needs the taps is launched.
template <typename T>
LaunchShape scan_sweep_shape(const ScanWork& work, int warps) {
  LaunchShape shape = scan_shape(work, warps);
  shape.shared_bytes = kScanTapRows * kScanLanes * sizeof(T);
  return shape;
}

// The states at the start of segments, kept in [slots of segments, N, pitch]. Chunks that are walked: those
// of a segment which has a successor, from a zero state.
template <typename IO, int kN>
__global__ void __launch_bounds__(kScanThreads, kScanBlocks)
    legendre_scan_carry(ScanInput<typename IO::T> input, IO io, typename IO::T* __restrict__ carry) {
  using T = typename IO::T;
  HYENAREC_SHARED_MEMORY(T, taps);
  const ScanThread<T, kN> thread(input, taps);
  thread.for_each_segment([&](const ScanSequence& sequence, const ScanChunks& chunks) {
    if (chunks_of(sequence) <= chunks.first + input.work.segment_chunks) return;
    T state[kN];
    clear_state<kN>(state, thread.coeffs());
    for (int64_t chunk = chunks.first; chunk < chunks.last; ++chunk) {
      auto rows = chunk_rows(thread.place.channel, sequence, chunk);
      rows.count = kScanChunk;  // known to the compiler
      thread.advance(chunk, io.load_input(rows), state);
    }
    thread.store(carry, thread.segment_slot(sequence) + 1, state);
  });
}

// Its backward: what the gradients of a segment's outputs say of the state at its start.
template <typename IO, int kN>
__global__ void __launch_bounds__(kScanThreads, kScanBlocks)
    legendre_scan_carry_backward(ScanInput<typename IO::T> input, IO io, typename IO::T* __restrict__ carry) {
  using T = typename IO::T;
  if (scan_place(input.work).segment == 0) return;  // the whole block
  HYENAREC_SHARED_MEMORY(T, taps);
  const ScanThread<T, kN> thread(input, taps);
  thread.for_each_segment([&](const ScanSequence& sequence, const ScanChunks& chunks) {
    if (chunks.first >= chunks.last) return;
    T state_grad[kN];
    clear_state<kN>(state_grad, thread.coeffs());
    for (int64_t chunk = chunks.last - 1; chunk >= chunks.first; --chunk) {
      if (chunk + 1 < chunks.last) thread.restrict_backward(chunk, state_grad);
      const auto dy = io.load_output_grad(chunk_rows(thread.place.channel, sequence, chunk));
      thread.evaluate_backward(chunk, dy, state_grad);
    }
    thread.store(carry, thread.segment_slot(sequence), state_grad);
  });
}

// carry of each segment alone -> of all segments before it (kBackward: from it on). A warp for a sequence and
// 32 channels.
template <typename T, int kN, bool kBackward>
__global__ void __launch_bounds__(kScanThreads)
    legendre_scan_combine(ScanInput<T> input, T* __restrict__ carry) {
  const auto& [work, tables, channels] = input;
  const ScanPlace place = scan_place(work);
  if (place.channel >= work.channels || place.segment > 0) return;
  const int n = coeffs_of<kN>(tables), row_pitch = row_pitch_of<kN>(tables);
  const T decay = expm1(-channels.decay[place.channel] * static_cast<T>(work.segment_rows()));
  for_each_sequence(work, place, [&](const ScanSequence& sequence) {
    const int64_t segments = ceil_div(chunks_of(sequence), work.segment_chunks);
    T* slots = carry + work.slot(sequence, work.segment_rows()) * n * channels.pitch + place.channel;
    T state[kN];
    clear_state<kN>(state, n);
    for (int64_t i = 1; i < segments; ++i) {
      const int64_t segment = kBackward ? segments - i : i;
      // The state before segment 1 is zero, and so is its gradient behind the last.
      if (i > 1) {
        const T* jump = tables.jumps + (kBackward ? segment : segment - 1) * n * row_pitch;
        if (kBackward) {
          restrict_state_backward<kN>(jump, row_pitch, decay, state, n);
        } else {
          restrict_state<kN>(jump, row_pitch, decay, state, n);
        }
      }
      T* slot = slots + segment * n * channels.pitch;
#pragma unroll kScanUnroll < kN>
      for (int p = 0; p < n; ++p) state[p] += slot[p * channels.pitch];
      store_state<kN>(slot, channels.pitch, state, n);
    }
  });
}

// The output; or with kStates instead the states at the start of chunks, for the backward sweep, into
// [slots of chunks, N, pitch].
template <typename IO, int kN, bool kStates>
__global__ void __launch_bounds__(kScanThreads, kScanBlocks) legendre_scan_forward(
    ScanInput<typename IO::T> input, IO io, const typename IO::T* __restrict__ carry,
    typename IO::T* __restrict__ states) {
  using T = typename IO::T;
  HYENAREC_SHARED_MEMORY(T, taps);
  const ScanThread<T, kN> thread(input, taps);
  const ScanPlace& place = thread.place;
  thread.for_each_segment([&](const ScanSequence& sequence, const ScanChunks& chunks) {
    T state[kN];
    clear_state<kN>(state, thread.coeffs());
    if (place.segment > 0 && chunks.first < chunks.last)
      thread.load(carry, thread.segment_slot(sequence), state);
    for (int64_t chunk = chunks.first; chunk < chunks.last; ++chunk) {
      const auto rows = chunk_rows(place.channel, sequence, chunk);
      const bool is_last = chunk + 1 == chunks_of(sequence);
      if (kStates && chunk > 0) thread.store(states, input.work.slot(sequence, kScanChunk) + chunk, state);
      if (kStates && is_last) break;
      const auto x = io.load_input(rows);
      if (!kStates) {
        ScanChunk<T> y = {};
        if (chunk > 0) thread.evaluate(chunk, state, y);
        add_near(thread, x, y);
        io.store_output(rows, y);
      }
      if (!is_last) thread.advance(chunk, x, state);
    }
    for (int64_t i = 0; i < sequence.excess && !kStates && place.segment == 0; ++i)
      io.poison_output(place.channel, sequence.begin + sequence.length + i);
  });
}

}  // namespace hyenarec
