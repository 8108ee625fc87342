// The scan's forward pass over a task, segment by segment, and in each segment chunk by chunk.
#pragma once

#include <algorithm>
#include <cstdint>

#include "look_ahead.h"
#include "stages.h"

namespace hyenarec::scan {

// Chunk i of every sequence that has it.
template <typename V, typename IO>
HYENAREC_INLINE void forward_chunk(
    const Segment<V>& segment, int64_t i, const Task& task, const ForwardMemory<V>& memory,
    ChunkBuffers<V>& buffers, IO& io) {
  const ScanStep<V> chunk = segment.chunk(i);
  const Group& group = task.group;
  const int64_t alive = group.longer_than(chunk.begin), going_on = group.longer_than(chunk.end);
  for (int64_t s = 0; s < alive; ++s) {
    const int64_t rows = std::min(chunk.events(), group.lengths[s] - chunk.begin);
    io.load_input(s, chunk.begin, rows, buffers.z);
    const NextChunk next = next_chunk(group, s, chunk.begin, alive, chunk.events(), chunk.events());
    LookAhead ahead(next.rows, 3 * task.vectors);
    if (next.rows > 0) io.watch_forward(next.s, next.begin, ahead);
    if (s + 1 == going_on && chunk.has_next())  // what `advance` reads first
      ahead.read_array(chunk.contracted(0), chunk.shape().size() * sizeof(V));
    const auto* const basis = direct_basis(chunk, rows, memory.basis);
    for (int64_t v = 0; v < task.vectors; ++v) {
      const ScanParameters<V> parameters = segment.scan.parameters(v);
      V* const z = buffers.z.of(v);
      V* const y = buffers.y.of(v);
      clear(z, rows, padded(rows));
      evaluate_state(
          chunk, rows, basis, parameters.decay_from_start(), memory.states.of(s, v), memory.local, y);
      ahead.fetch();
      add_near(parameters.near, z, y, padded(rows));
      ahead.fetch();
      if (s < going_on)
        take_moments(
            chunk.tables(), segment.num_moments(i), z, parameters.decay_to_end(), buffers.folded,
            memory.moments.of(s, v));
      ahead.fetch();
    }
    io.store_output(s, chunk.begin, rows, buffers.y);
  }
}

// y = kernel * z of every sequence of a task, from first chunk to last. The states that segments hand on are
// saved if `saved` has memory.
template <typename V, typename IO>
HYENAREC_INLINE void forward_task(
    const Scan<V>& scan, const Task& task, const SavedStates<LaneOf<V>>& saved, IO& io, Scratch& scratch) {
  const Group& group = task.group;
  const ForwardMemory<V> memory(scratch, task, scan);
  ChunkBuffers<V> buffers(scan.chunk());
  for (int64_t index = 0; index * scan.tables.segment < group.longest(); ++index) {
    const Segment<V> segment(scan, index);
    const int64_t passing = group.longer_than(segment.end);
    if (index > 0) enter_segment(segment, group.longer_than(segment.begin), memory.carried, memory.states);
    clear(memory.segment_moments.data, 0, memory.segment_moments.size(passing));
    for (int64_t i = 0; i < segment.chunks() && segment.chunk(i).begin < group.longest(); ++i) {
      const ScanStep<V> chunk = segment.chunk(i);
      forward_chunk(segment, i, task, memory, buffers, io);
      const int64_t going_on = group.longer_than(chunk.end);
      if (going_on > 0 && chunk.has_next()) advance(chunk, going_on, memory.moments, memory.states);
      if (passing > 0) gather_moments(segment, i, passing, memory.moments, memory.segment_moments);
    }
    if (passing == 0) continue;
    advance(segment, passing, memory.segment_moments, memory.carried);
    if (saved.data) save_states(saved, segment, task, passing, memory.carried);
  }
}

}  // namespace hyenarec::scan
