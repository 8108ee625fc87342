// The scan's backward pass over a task, from the last segment to the first. Each segment is walked forwards
// once for its chunks' states, beginning with those that the forward pass saved, then backwards for
// everything else. So the states of only one segment are kept at a time, and its inputs are still in a cache
// when they are read again.
#pragma once

#include <algorithm>
#include <cstdint>

#include "look_ahead.h"
#include "stages.h"

namespace hyenarec::scan {

// Chunks of sequences whose sums are added up in the activations' precision before they are flushed.
constexpr int64_t kMaxUnflushed = 4;

// What the sweeps over a task share.
template <typename V, typename IO>
struct BackwardTask {
  const Scan<V>& scan;
  const Task& task;
  const GradientMask& wanted;
  IO& io;
  Scratch& scratch;
  Sums& sums;  // laid out as GradientLayout says
  const Group& group = task.group;
  const GradientLayout layout{scan.contractions};
  const Contractions<LaneOf<V>> reached{scan.tables, group.longest()};
  const BackwardMemory<V> memory{scratch, task, scan, reached, wanted.needs_states()};
  ChunkBuffers<V> buffers{scan.chunk()};
  int64_t unflushed = 0;  // sequences' chunks

  // The gradients of the task's sequences.
  HYENAREC_INLINE void run(const SavedStates<const LaneOf<V>>& saved) {
    for (int64_t index = (group.longest() - 1) / scan.tables.segment; index >= 0; --index) {
      const Segment<V> segment(scan, index);
      const int64_t passing = group.longer_than(segment.end);
      if (wanted.needs_states()) {
        if (index > 0 && saved.data) load_states(saved, segment, task, memory.segment.states);
        keep_states(segment);
      }
      if (passing > 0) {
        advance_segment_backward(segment, passing, wanted.parameters, memory);
        flush_rows(segment.part.first_sum, layout.lags);
      }
      sweep(segment);
      if (index > 0) enter_segment_backward(segment, group.longer_than(segment.begin), memory);
    }
    flush_rows(layout.lags, layout.count);
    if (wanted.parameters) finish_sums();
  }

  // Takes the moments of chunk i, of the sequences that go on after it.
  HYENAREC_INLINE void keep_moments(const Segment<V>& segment, int64_t i) {
    const ScanStep<V> chunk = segment.chunk(i);
    const int64_t events = chunk.events(), going_on = group.longer_than(chunk.end);
    for (int64_t s = 0; s < going_on; ++s) {
      io.load_input(s, chunk.begin, events, buffers.z);
      const NextChunk next = next_chunk(group, s, chunk.begin, going_on, events, events);
      LookAhead ahead(next.rows, task.vectors);
      if (next.rows > 0 && next.begin < segment.end) io.watch_inputs(next.s, next.begin, ahead);
      for (int64_t v = 0; v < task.vectors; ++v) {
        ahead.fetch();
        take_moments(
            chunk.tables(), segment.num_moments(i), buffers.z.of(v), scan.parameters(v).decay_to_end(),
            buffers.folded, memory.chunk(i).moments.of(s, v));
      }
    }
  }

  // Computes the states that a segment's chunks start with and the moments of chunks and segment, and keeps
  // them.
  HYENAREC_INLINE void keep_states(const Segment<V>& segment) {
    const int64_t passing = group.longer_than(segment.end);
    const auto& carried = memory.segment.states;
    const auto& segment_moments = memory.segment.moments;
    clear(segment_moments.data, 0, segment_moments.size(passing));
    if (segment.has_past)
      enter_segment(segment, group.longer_than(segment.begin), carried, memory.chunk(0).states);
    for (int64_t i = 0; i < segment.chunks(); ++i) {
      const ScanStep<V> chunk = segment.chunk(i);
      const int64_t going_on = group.longer_than(chunk.end);
      if (going_on == 0) break;
      keep_moments(segment, i);
      const auto kept = memory.chunk(i);
      if (chunk.has_next()) {
        const auto states = memory.chunk(i + 1).states;
        if (chunk.has_past)
          std::copy_n(kept.states.data, states.size(going_on), states.data);
        else
          clear(states.data, 0, states.size(going_on));
        advance(chunk, going_on, kept.moments, states);
      }
      if (passing > 0) gather_moments(segment, i, passing, kept.moments, segment_moments);
    }
  }

  // The gradients of vector v of sequence s in chunk i, whose inputs and output gradients are in the buffers.
  HYENAREC_INLINE void backward_vector(
      const Segment<V>& segment, int64_t i, int64_t s, int64_t v, int64_t rows, const LaneOf<V>* basis,
      LookAhead& ahead) {
    const ScanStep<V> chunk = segment.chunk(i);
    const StepMemory<V> kept = memory.chunk(i);
    const ScanParameters<V> parameters = scan.parameters(v);
    const int64_t events = chunk.events(), end = padded(rows);
    const bool has_past = chunk.has_past, goes_on = group.lengths[s] > chunk.end;
    V *const z = buffers.z.of(v), *const y = buffers.y.of(v);
    V *const dy = buffers.dy.of(v), *const dz = buffers.dz.of(v);
    clear(z, rows, end);
    clear(dy, rows, has_past ? events : end);
    ahead.fetch();
    if (wanted.needs_states())
      evaluate_state(
          chunk, rows, basis, parameters.decay_from_start(), has_past ? kept.states.of(s, v) : nullptr,
          memory.local, y);
    const auto lag = [](int64_t t) { return static_cast<LaneOf<V>>(t); };
    if (wanted.parameters && has_past)
      memory.far_decay(v) -=
          sum_over<V>(rows, [&](int64_t t) HYENAREC_INLINE_LAMBDA { return lag(t) * dy[t] * y[t]; });
    if (wanted.output) add_near(parameters.near, z, y, end);
    ahead.fetch();
    if (goes_on) {
      evaluate(
          chunk.tables(), segment.num_moments(i), kept.moment_grads.of(s, v), parameters.decay_to_end(), dz);
      if (wanted.parameters)
        memory.far_decay(v) -= sum_over<V>(
            events, [&](int64_t t) HYENAREC_INLINE_LAMBDA { return lag(events - t) * z[t] * dz[t]; });
    } else {
      clear(dz, 0, end);
    }
    if (has_past)
      evaluate_state_backward(
          chunk, rows, basis, parameters.decay_from_start(), dy, buffers.folded, memory.local,
          kept.grads.of(s, v));
    ahead.fetch();
    add_near_backward(parameters.near, dy, dz, end);
    ahead.fetch();
    if (wanted.parameters) add_near_kernel_grads(dy, z, memory.partial_sums.of(v) + layout.lags, end);
  }

  // Chunk i of every sequence that has it, after its moments' gradients.
  HYENAREC_INLINE void backward_chunk(const Segment<V>& segment, int64_t i) {
    const ScanStep<V> chunk = segment.chunk(i);
    const int64_t events = chunk.events(), alive = group.longer_than(chunk.begin);
    for (int64_t s = 0; s < alive; ++s) {
      const int64_t rows = std::min(events, group.lengths[s] - chunk.begin);
      io.load_input(s, chunk.begin, rows, buffers.z);
      io.load_output_grad(s, chunk.begin, rows, buffers.dy);
      // After the segment's first chunk, keep_states goes on with the first chunk of the segment before.
      // (Without states it is the last one, which is fetched when it is needed.)
      const bool leaves = i == 0 && s + 1 == alive;
      const NextChunk next =
          next_chunk(group, s, chunk.begin, alive, events, leaves ? -scan.tables.segment : -events);
      LookAhead ahead(next.rows, 4 * task.vectors);
      if (next.rows > 0 && leaves)
        io.watch_inputs(next.s, next.begin, ahead);
      else if (next.rows > 0)
        io.watch_backward(next.s, next.begin, ahead);
      if (i > 1 && group.lengths[s] > chunk.end) {
        const StepMemory<V> kept = memory.chunk(i - 1);
        ahead.read_array(kept.states.of(s, 0), kept.states.size(1) * sizeof(V));
        ahead.read_array(kept.moments.of(s, 0), kept.moments.size(1) * sizeof(V));
      }
      const auto* const basis = direct_basis(chunk, rows, memory.basis);
      for (int64_t v = 0; v < task.vectors; ++v) backward_vector(segment, i, s, v, rows, basis, ahead);
      if (wanted.output) io.store_gate_grad(s, chunk.begin, rows, buffers.y);
      if (wanted.input) io.store_input_grad(s, chunk.begin, rows, buffers.dz);
    }
  }

  // The transposed scan through a segment, from its last chunk to its first.
  HYENAREC_INLINE void sweep(const Segment<V>& segment) {
    const int64_t events = scan.chunk(), passing = group.longer_than(segment.end);
    const int64_t chunks = (group.longest() - segment.begin + events - 1) / events;
    for (int64_t i = std::min(segment.chunks(), chunks) - 1; i >= 0; --i) {
      const ScanStep<V> chunk = segment.chunk(i);
      const StepMemory<V> kept = memory.chunk(i);
      const int64_t going_on = group.longer_than(chunk.end);
      clear(kept.moment_grads.data, 0, kept.moment_grads.size(going_on));
      if (passing > 0) gather_moments_backward(segment, i, passing, wanted.parameters, memory);
      if (going_on > 0 && chunk.has_next())
        advance_backward(
            chunk, going_on, wanted.parameters, kept, memory.products.at(chunk.part.rows[i]), memory);
      backward_chunk(segment, i);
      unflushed += group.longer_than(chunk.begin);
      if (unflushed >= kMaxUnflushed) {
        flush_rows(layout.lags, layout.count);
        unflushed = 0;
      }
      io.end_chunk();
    }
  }

  HYENAREC_INLINE void flush_rows(int64_t first, int64_t end) {
    for (int64_t v = 0; v < task.vectors && wanted.parameters; ++v)
      flush(memory.partial_sums.of(v) + first, end - first, sums.of(task, v) + first * simd::kLanes<V>);
  }

  // Carries the products within segments to the sums of the task.
  HYENAREC_INLINE void finish_sums() {
    for (const auto* part : {&reached.whole, &reached.cut}) {
      for (int64_t i = 0; i < part->count(); ++i) {
        contract_products(*part, i, memory.products.at(part->rows[i]), memory);
        flush_rows(part->first_sum, part->first_sum + part->num_degrees());
      }
    }
  }
};

}  // namespace hyenarec::scan
