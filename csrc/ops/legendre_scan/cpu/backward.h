// The scan's backward pass over a task, from the last segment to the first. Each segment is walked forwards
// once for its chunks' states, beginning with those that the forward pass saved, then backwards for
// everything else. So the states of only one segment are kept at a time, and its inputs are still in a cache
// when they are read again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "stages.h"

namespace hyenarec::scan {

// Chunks of sequences whose sums are added up in the activations' precision before they are flushed.
constexpr int64_t kMaxUnflushed = 4;

// Takes a chunk's moments, of the sequences that go on after it.
template <typename V, typename IO>
HYENAREC_INLINE void keep_moments(
    const Segment<V>& segment, int64_t i, const Task& task, const StateRows<V>& moments,
    ChunkBuffers<V>& buffers, IO& io) {
  const auto& tables = segment.tables;
  const int64_t chunk = tables.chunk, begin = segment.begin + i * chunk;
  const int64_t going_on = task.group.longer_than(begin + chunk);
  for (int64_t s = 0; s < going_on; ++s) {
    io.load_input(s, begin, chunk, buffers.z);
    const NextChunk next = next_chunk(task.group, s, begin, going_on, chunk, chunk);
    LookAhead ahead(next.rows, task.vectors);
    if (next.rows > 0 && next.begin < segment.end) io.watch_inputs(next.s, next.begin, ahead);
    for (int64_t v = 0; v < task.vectors; ++v) {
      ahead.fetch();
      take_moments(
          tables.basis_by_column.data(), tables.num_coeffs, chunk, segment.num_moments(i), buffers.z.of(v),
          segment.scan.parameters[v].decay_to_end, buffers.folded, moments.of(s, v));
    }
  }
}

// Computes the states that a segment's chunks start with and the moments of chunks and segment, and keeps
// them.
template <typename V, typename IO>
HYENAREC_INLINE void keep_states(
    const Segment<V>& segment, const Task& task, const BackwardMemory<V>& memory, ChunkBuffers<V>& buffers,
    IO& io) {
  const Group& group = task.group;
  const int64_t chunk = segment.tables.chunk;
  const int64_t passing = group.longer_than(segment.end);
  std::fill_n(memory.segment_moments.data, memory.segment_moments.size(passing), V{});
  if (segment.index > 0)
    enter_segment(segment, group.longer_than(segment.begin), memory.carried, memory.states(0));
  for (int64_t i = 0; i < segment.chunks(); ++i) {
    const int64_t going_on = group.longer_than(segment.begin + (i + 1) * chunk);
    if (going_on == 0) break;
    const auto moments = memory.moments(i);
    keep_moments(segment, i, task, moments, buffers, io);
    if (i + 1 < segment.chunks()) {
      const auto states = memory.states(i + 1);
      if (segment.has_past(i))
        std::copy_n(memory.states(i).data, states.size(going_on), states.data);
      else
        std::fill_n(states.data, states.size(going_on), V{});
      advance_chunk(segment, i, going_on, moments, states);
    }
    if (passing > 0) gather_moments(segment, i, passing, moments, memory.segment_moments);
  }
}

// The gradients of one vector of a sequence's chunk, whose inputs and output gradients are in `buffers`. The
// sequence goes on after the chunk if `goes_on`.
template <typename V>
HYENAREC_INLINE void backward_vector(
    const Segment<V>& segment, int64_t i, int64_t s, int64_t v, int64_t rows, bool goes_on,
    const LaneOf<V>* basis, const GradientMask& wanted, const BackwardMemory<V>& memory,
    ChunkBuffers<V>& buffers, LookAhead& ahead) {
  using lane_t = LaneOf<V>;
  const auto& tables = segment.tables;
  const int64_t chunk = tables.chunk, end = padded(rows);
  const GradientLayout layout(segment.scan.tables);
  const bool has_past = segment.has_past(i);
  const ScanParameters<V>& parameters = segment.scan.parameters[v];
  V* const partial_sums = memory.partial_sums(v).first;
  V *const z = buffers.z.of(v), *const y = buffers.y.of(v);
  V *const dy = buffers.dy.of(v), *const dz = buffers.dz.of(v);
  const auto lag = [](int64_t t) { return static_cast<lane_t>(t); };
  const auto to_end = [chunk](int64_t t) { return static_cast<lane_t>(chunk - t); };
  clear_rest(z, rows, end);
  clear_rest(dy, rows, has_past ? chunk : end);
  ahead.fetch();
  if (wanted.needs_states())
    evaluate_state(
        segment, i, rows, basis, parameters, has_past ? memory.states(i).of(s, v) : nullptr, memory.local, y);
  if (wanted.parameters && has_past) partial_sums[layout.far_decay] -= weighted_product(dy, y, rows, lag);
  if (wanted.output) add_near(parameters.near, z, y, end);
  ahead.fetch();
  if (goes_on) {
    evaluate(
        tables.basis.data(), chunk, segment.num_moments(i), memory.moment_grads.of(s, v),
        parameters.decay_to_end, dz);
    if (wanted.parameters) partial_sums[layout.far_decay] -= weighted_product(z, dz, chunk, to_end);
  } else {
    clear_rest(dz, 0, end);
  }
  if (has_past)
    evaluate_state_backward(
        segment, i, rows, basis, parameters, dy, buffers.folded, memory.local, memory.grads.of(s, v));
  ahead.fetch();
  add_near_backward(parameters.near, dy, dz, end);
  ahead.fetch();
  if (wanted.parameters) add_near_kernel_grads(dy, z, partial_sums + layout.lags, end);
}

// One chunk of every sequence that has it, after its moments' gradients.
template <typename V, typename IO>
HYENAREC_INLINE void backward_chunk(
    const Segment<V>& segment, int64_t i, const Task& task, const GradientMask& wanted,
    const BackwardMemory<V>& memory, ChunkBuffers<V>& buffers, IO& io) {
  const int64_t chunk = segment.tables.chunk, begin = segment.begin + i * chunk;
  const Group& group = task.group;
  const int64_t alive = group.longer_than(begin), going_on = group.longer_than(begin + chunk);
  for (int64_t s = 0; s < alive; ++s) {
    const int64_t rows = std::min(chunk, group.lengths[s] - begin);
    io.load_input(s, begin, rows, buffers.z);
    io.load_output_grad(s, begin, rows, buffers.dy);
    // After the segment's first chunk, keep_states goes on with the first chunk of the segment before.
    // (Without states it is the last one, which is fetched when it is needed.)
    const bool leaves = i == 0 && s + 1 == alive;
    const NextChunk next =
        next_chunk(group, s, begin, alive, chunk, leaves ? -segment.scan.tables.segment : -chunk);
    LookAhead ahead(next.rows, 4 * task.vectors);
    if (next.rows > 0 && leaves)
      io.watch_inputs(next.s, next.begin, ahead);
    else if (next.rows > 0)
      io.watch_backward(next.s, next.begin, ahead);
    if (s < going_on && i > 1) memory.watch(i - 1, s, next.rows, ahead);
    const auto* const basis = memory.basis.fill(segment, i, rows);
    for (int64_t v = 0; v < task.vectors; ++v)
      backward_vector(segment, i, s, v, rows, s < going_on, basis, wanted, memory, buffers, ahead);
    if (wanted.output) io.store_gate_grad(s, begin, rows, buffers.y);
    if (wanted.input) io.store_input_grad(s, begin, rows, buffers.dz);
  }
}

// The transposed scan through a segment, from its last chunk to its first. `flush_chunks(sequences)` is
// called after each.
template <typename V, typename IO, typename FlushChunks>
HYENAREC_INLINE void sweep_backwards(
    const Segment<V>& segment, const Task& task, const GradientMask& wanted, const BackwardMemory<V>& memory,
    ChunkBuffers<V>& buffers, IO& io, const FlushChunks& flush_chunks) {
  const int64_t chunk = segment.tables.chunk;
  const Group& group = task.group;
  const int64_t passing = group.longer_than(segment.end);
  const int64_t last = std::min(segment.chunks(), (group.longest() - segment.begin + chunk - 1) / chunk) - 1;
  for (int64_t i = last; i >= 0; --i) {
    const int64_t going_on = group.longer_than(segment.begin + (i + 1) * chunk);
    std::fill_n(memory.moment_grads.data, memory.moment_grads.size(going_on), V{});
    if (passing > 0) gather_moments_backward(segment, i, passing, wanted.parameters, memory);
    if (going_on > 0 && i + 1 < segment.chunks())
      advance_chunk_backward(segment, i, going_on, wanted.parameters, memory);
    backward_chunk(segment, i, task, wanted, memory, buffers, io);
    flush_chunks(group.longer_than(segment.begin + i * chunk));
    io.end_chunk();
  }
}

// Carries the products within segments to the sums of the task.
template <typename V>
HYENAREC_INLINE void finish_sums(
    const Scan<V>& scan, const Contractions<LaneOf<V>>& reached, int64_t vectors,
    const BackwardMemory<V>& memory, double* const* sums) {
  const GradientLayout layout(scan.tables);
  in_pairs(vectors, [&](auto size, int64_t v) HYENAREC_INLINE_LAMBDA {
    const auto products = memory.products(v), partial_sums = memory.partial_sums(v);
    for (const bool is_cut : {false, true}) {
      const auto& part = reached.within(is_cut);
      const int64_t row = is_cut ? layout.cut : layout.whole;
      for (int64_t i = 0; i < part.count(); ++i) {
        contract_backward<size(), V>(
            part.tables->chunks[i].transfer.data(), part.shape(i),
            {products.first + part.rows[i], products.stride},
            {partial_sums.first + row, partial_sums.stride});
        for (int m = 0; m < size(); ++m)
          flush(partial_sums.of(m) + row, part.num_degrees(), sums[v + m] + row * simd::kLanes<V>);
      }
    }
  });
}

// The gradients of a task's sequences. sums[vector] [GradientLayout::count, lanes] start at zero.
template <typename V, typename IO>
HYENAREC_INLINE void backward_task(
    const Scan<V>& scan, const Task& task, const GradientMask& wanted,
    const SavedStates<const LaneOf<V>>& saved, IO& io, Scratch& scratch, double* const* sums) {
  const GradientLayout layout(scan.tables);
  const Group& group = task.group;
  const bool keep = wanted.needs_states();
  const Contractions<LaneOf<V>> reached(scan.tables, group.longest());
  const BackwardMemory<V> memory(scratch, task, scan, reached, keep);
  ChunkBuffers<V> buffers(scan.chunk());
  const auto flush_rows = [&](int64_t first, int64_t end) HYENAREC_INLINE_LAMBDA {
    for (int64_t v = 0; v < task.vectors && wanted.parameters; ++v)
      flush(memory.partial_sums(v).first + first, end - first, sums[v] + first * simd::kLanes<V>);
  };
  int64_t unflushed = 0;  // sequences' chunks
  for (int64_t index = (group.longest() - 1) / scan.tables.segment; index >= 0; --index) {
    const Segment<V> segment(scan, index);
    const int64_t passing = group.longer_than(segment.end);
    if (keep) {
      if (index > 0 && saved.data) load_states(saved, segment, task, memory.carried);
      keep_states(segment, task, memory, buffers, io);
    }
    if (passing > 0) {
      advance_segment_backward(segment, passing, wanted.parameters, memory);
      flush_rows(layout.between, layout.lags);
    }
    sweep_backwards(
        segment, task, wanted, memory, buffers, io, [&](int64_t sequences) HYENAREC_INLINE_LAMBDA {
          unflushed += sequences;
          if (unflushed < kMaxUnflushed) return;
          flush_rows(layout.lags, layout.count);
          unflushed = 0;
        });
    if (index > 0) enter_segment_backward(segment, group.longer_than(segment.begin), memory);
  }
  flush_rows(layout.lags, layout.count);
  if (wanted.parameters) finish_sums(scan, reached, task.vectors, memory, sums);
}

}  // namespace hyenarec::scan
