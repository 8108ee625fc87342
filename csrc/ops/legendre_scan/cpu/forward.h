// The scan's forward pass over a task, segment by segment, and in each segment chunk by chunk.
#pragma once

#include <algorithm>
#include <cstdint>

#include "stages.h"

namespace hyenarec::scan {

// One chunk of every sequence that has it.
template <typename V, typename IO>
HYENAREC_INLINE void forward_chunk(
    const Segment<V>& segment, int64_t i, const Task& task, const ForwardMemory<V>& memory,
    ChunkBuffers<V>& buffers, IO& io) {
  const auto& tables = segment.tables;
  const int64_t chunk = tables.chunk, begin = segment.begin + i * chunk;
  const Group& group = task.group;
  const int64_t alive = group.longer_than(begin), going_on = group.longer_than(begin + chunk);
  for (int64_t s = 0; s < alive; ++s) {
    const int64_t rows = std::min(chunk, group.lengths[s] - begin);
    io.load_input(s, begin, rows, buffers.z);
    const NextChunk next = next_chunk(group, s, begin, alive, chunk, chunk);
    LookAhead ahead(next.rows, 3 * task.vectors);
    if (next.rows > 0) io.watch_forward(next.s, next.begin, ahead);
    if (s + 1 == going_on && i + 1 < segment.chunks()) watch_contraction(segment, i, next.rows, ahead);
    const auto* const basis = memory.basis.fill(segment, i, rows);
    for (int64_t v = 0; v < task.vectors; ++v) {
      const ScanParameters<V>& parameters = segment.scan.parameters[v];
      V* const z = buffers.z.of(v);
      V* const y = buffers.y.of(v);
      clear_rest(z, rows, padded(rows));
      evaluate_state(segment, i, rows, basis, parameters, memory.states.of(s, v), memory.local, y);
      ahead.fetch();
      add_near(parameters.near, z, y, padded(rows));
      ahead.fetch();
      if (s < going_on)
        take_moments(
            tables.basis_by_column.data(), tables.num_coeffs, chunk, segment.num_moments(i), z,
            parameters.decay_to_end, buffers.folded, memory.moments.of(s, v));
      ahead.fetch();
    }
    io.store_output(s, begin, rows, buffers.y);
  }
}

// y = kernel * z of every sequence of a task, from first chunk to last. The states that segments hand on are
// saved if `saved` has memory.
template <typename V, typename IO>
HYENAREC_INLINE void forward_task(
    const Scan<V>& scan, const Task& task, const SavedStates<LaneOf<V>>& saved, IO& io, Scratch& scratch) {
  const Group& group = task.group;
  const int64_t chunk = scan.chunk();
  const ForwardMemory<V> memory(scratch, task, scan);
  ChunkBuffers<V> buffers(chunk);
  for (int64_t index = 0; index * scan.tables.segment < group.longest(); ++index) {
    const Segment<V> segment(scan, index);
    const int64_t passing = group.longer_than(segment.end);
    if (index > 0) enter_segment(segment, group.longer_than(segment.begin), memory.carried, memory.states);
    std::fill_n(memory.segment_moments.data, memory.segment_moments.size(passing), V{});
    for (int64_t i = 0; i < segment.chunks() && segment.begin + i * chunk < group.longest(); ++i) {
      forward_chunk(segment, i, task, memory, buffers, io);
      const int64_t going_on = group.longer_than(segment.begin + (i + 1) * chunk);
      if (going_on > 0 && i + 1 < segment.chunks())
        advance_chunk(segment, i, going_on, memory.moments, memory.states);
      if (passing > 0) gather_moments(segment, i, passing, memory.moments, memory.segment_moments);
    }
    if (passing == 0) continue;
    advance_segment(segment, passing, memory.segment_moments, memory.carried);
    if (saved.data) save_states(saved, segment, task, passing, memory.carried);
  }
}

}  // namespace hyenarec::scan
