// The stages of the scan over a task's sequences, each directly above its backward stage: what a state
// contributes to a chunk, from chunk to chunk, from chunk to segment, from segment to segment, into a
// segment.
#pragma once

#include <algorithm>
#include <cstdint>

#include "memory.h"

namespace hyenarec::scan {

// y = what the events before a chunk contribute to its first `rows` events and the rest of their block.
// `basis` is that of those events if they are evaluated directly, else nullptr.
template <typename V>
HYENAREC_INLINE void evaluate_state(
    const ScanStep<V>& chunk, int64_t rows, const LaneOf<V>* basis, const V* decay_from_start, const V* state,
    V* local, V* y) {
  const auto& constants = chunk.constants();
  if (!chunk.has_past) {
    clear(y, 0, padded(rows));
  } else if (basis) {
    evaluate_directly(basis, padded(rows), constants.num_state, state, decay_from_start, y);
  } else {
    multiply_upper(
        constants.local_by_column.data(), constants.num_local, constants.num_local, constants.num_state,
        state, local);
    evaluate(chunk.tables(), constants.num_local, local, decay_from_start, y);
  }
}

// dstate += the gradient of a chunk's first `rows` outputs, dy, through `evaluate_state`; the chunk has a
// past.
template <typename V>
HYENAREC_INLINE void evaluate_state_backward(
    const ScanStep<V>& chunk, int64_t rows, const LaneOf<V>* basis, const V* decay_from_start, const V* dy,
    V* folded, V* dlocal, V* dstate) {
  const auto& constants = chunk.constants();
  if (basis) {
    evaluate_directly_backward(basis, padded(rows), constants.num_state, dy, decay_from_start, dstate);
  } else {
    take_moments(chunk.tables(), constants.num_local, dy, decay_from_start, folded, dlocal);
    add_transposed_upper(
        constants.local.data(), chunk.scan.num_coeffs(), constants.num_local, constants.num_state, dlocal,
        V{}, dstate);
  }
}

// Moves the states of a task's first sequences from a step's start to its end, where the scan goes on: those
// of chunks within a segment, or those carried from segment to segment.
template <typename V>
HYENAREC_INLINE void advance(
    const ScanStep<V>& step, int64_t sequences, const StateRows<V>& moments, const StateRows<V>& states) {
  for (int64_t v = 0; v < states.vectors; ++v) {
    if (step.has_past)
      restrict_states(
          step.constants(), step.scan.num_coeffs(), step.decay_change(v), sequences, states.members(v));
    transfer_moments(
        step.contracted(v), step.contracted(std::min(v + 1, states.vectors - 1)), step.shape(), sequences,
        moments.members(v), states.members(v));
  }
}

// sum over the sequences of a[s] b[s], rows of vector v.
template <typename V>
HYENAREC_INLINE V
inner_product(const StateRows<V>& a, const StateRows<V>& b, int64_t v, int64_t sequences, int64_t count) {
  V sum = {};
  for (int64_t s = 0; s < sequences; ++s)
    sum +=
        sum_over<V>(count, [&](int64_t t) HYENAREC_INLINE_LAMBDA { return a.of(s, v)[t] * b.of(s, v)[t]; });
  return sum;
}

// Moves the gradients of the states from a step's end to its start, where the scan goes on, and adds to the
// gradients of its moments. With parameters, `products` get those of each vector's contraction.
template <typename V>
HYENAREC_INLINE void advance_backward(
    const ScanStep<V>& step, int64_t sequences, bool with_parameters, const StepMemory<V>& kept,
    const StridedRows<V>& products, const BackwardMemory<V>& memory) {
  for (int64_t v = 0; v < kept.grads.vectors; ++v) {
    const auto grads = kept.grads.members(v);
    if (with_parameters)
      add_contraction_grads(step.shape(), sequences, kept.moments.members(v), grads, products.of(v));
    transfer_moments_backward(
        step.contracted(v), step.shape(), sequences, grads, kept.moment_grads.members(v));
    if (!step.has_past) continue;
    restrict_states_backward(
        step.constants(), step.scan.num_coeffs(), step.decay_change(v), sequences, grads);
    if (with_parameters)
      memory.far_decay(v) -= static_cast<LaneOf<V>>(step.events()) *
                             inner_product(kept.grads, kept.states, v, sequences, step.constants().num_state);
  }
}

// Carries the gradients of a part's contraction i to its coefficients'.
template <typename V>
HYENAREC_INLINE void contract_products(
    const ScanPart<LaneOf<V>>& part, int64_t i, const StridedRows<V>& products,
    const BackwardMemory<V>& memory) {
  in_runs<2>(memory.segment.grads.vectors, [&](auto size, int64_t v) HYENAREC_INLINE_LAMBDA {
    contract_backward<size(), V>(
        part.tables->chunks[i].transfer.data(), part.shape(i), products.from(v),
        memory.partial_sums.at(part.first_sum).from(v));
  });
}

// `advance_backward` for a segment. What goes through its own chunks comes later.
template <typename V>
HYENAREC_INLINE void advance_segment_backward(
    const Segment<V>& segment, int64_t sequences, bool with_parameters, const BackwardMemory<V>& memory) {
  const auto& kept = memory.segment;
  const auto& products = memory.segment_products;
  clear(kept.moment_grads.data, 0, kept.moment_grads.size(sequences));
  for (int64_t v = 0; v < kept.grads.vectors; ++v) clear(products.of(v), 0, segment.shape().size());
  advance_backward(segment, sequences, with_parameters, kept, products, memory);
  if (with_parameters) contract_products(segment.part, segment.index, products, memory);
}

// Adds the moments of chunk i to the segment's, which decay meanwhile.
template <typename V>
HYENAREC_INLINE void gather_moments(
    const Segment<V>& segment, int64_t i, int64_t sequences, const StateRows<V>& moments,
    const StateRows<V>& segment_moments) {
  const auto& gather = segment.gather(i);
  for (int64_t s = 0; s < sequences; ++s) {
    for (int64_t v = 0; v < moments.vectors; ++v)
      add_transposed_upper(
          gather.matrix.data(), segment.scan.num_coeffs(), gather.num_moments,
          segment.constants().num_moments, moments.of(s, v), segment.chunk(i).decay_change(v),
          segment_moments.of(s, v));
  }
}

// The gradients of chunk i's moments from those of the segment's moments, which are then moved to the chunk's
// start.
template <typename V>
HYENAREC_INLINE void gather_moments_backward(
    const Segment<V>& segment, int64_t i, int64_t sequences, bool with_parameters,
    const BackwardMemory<V>& memory) {
  const auto& gather = segment.gather(i);
  const ScanStep<V> chunk = segment.chunk(i);
  const StepMemory<V> kept = memory.chunk(i);
  const int64_t moments = segment.constants().num_moments;
  for (int64_t v = 0; v < kept.moments.vectors; ++v) {
    const V& step = chunk.decay_change(v);
    for (int64_t s = 0; s < sequences; ++s) {
      V* const from = memory.segment.moment_grads.of(s, v);
      multiply_upper(
          gather.by_column.data(), gather.num_moments, gather.num_moments, moments, from,
          kept.moment_grads.of(s, v));
      for (int64_t q = 0; q < moments; ++q) from[q] += step * from[q];
    }
    if (with_parameters)
      memory.far_decay(v) -= static_cast<LaneOf<V>>(segment.end - chunk.end) *
                             inner_product(kept.moments, kept.moment_grads, v, sequences, gather.num_moments);
  }
}

// Coefficients of the states that a segment begins with, `pitch` at most, from those carried into it.
template <typename V>
HYENAREC_INLINE int64_t num_entering(const Segment<V>& segment, int64_t pitch) {
  const auto& constants = segment.constants();
  return std::min(segment.is_cut ? constants.num_state : constants.num_local, pitch);
}

// The states that a segment begins with: its part of those carried into it.
template <typename V>
HYENAREC_INLINE void enter_segment(
    const Segment<V>& segment, int64_t sequences, const StateRows<V>& carried, const StateRows<V>& states) {
  const auto& constants = segment.constants();
  const int64_t rows = num_entering(segment, states.pitch);
  for (int64_t s = 0; s < sequences; ++s) {
    for (int64_t v = 0; v < states.vectors; ++v) {
      const V* const from = carried.of(s, v);
      V* const to = states.of(s, v);
      if (segment.is_cut)
        std::copy_n(from, rows, to);
      else
        multiply_upper(
            constants.local_by_column.data(), constants.num_local, rows, constants.num_state, from, to);
      clear(to, rows, states.pitch);
    }
  }
}

// The gradients of the states that a segment began with go to those carried into it.
template <typename V>
HYENAREC_INLINE void enter_segment_backward(
    const Segment<V>& segment, int64_t sequences, const BackwardMemory<V>& memory) {
  const auto& constants = segment.constants();
  const auto& grads = memory.chunk(0).grads;
  const int64_t rows = num_entering(segment, grads.pitch);
  for (int64_t s = 0; s < sequences; ++s) {
    for (int64_t v = 0; v < grads.vectors; ++v) {
      V* const from = grads.of(s, v);
      V* const to = memory.segment.grads.of(s, v);
      for (int64_t k = 0; k < rows && segment.is_cut; ++k) to[k] += from[k];
      if (!segment.is_cut)
        add_transposed_upper(
            constants.local.data(), segment.scan.num_coeffs(), rows, constants.num_state, from, V{}, to);
      clear(from, 0, grads.pitch);
    }
  }
}

// Saves the states that a segment ends with; `carried` has those of `sequences` sequences.
template <typename V>
HYENAREC_INLINE void save_states(
    const SavedStates<LaneOf<V>>& saved, const Segment<V>& segment, const Task& task, int64_t sequences,
    const StateRows<V>& carried) {
  for (int64_t s = 0; s < sequences; ++s) {
    LaneOf<V>* const row = saved.row(task.group.sequences[s], segment.index);
    for (int64_t k = 0; k < saved.num_coeffs; ++k) {
      for_each_vector<V>(task, [&](int64_t v, int64_t channels) HYENAREC_INLINE_LAMBDA {
        const V value = k < segment.constants().num_next ? carried.of(s, v)[k] : V{};
        simd::store_first(value, row + k * saved.channels + first_channel<V>(task, v), channels);
      });
    }
  }
}

// What `save_states` saved for the segment, at least the second one.
template <typename V>
HYENAREC_INLINE void load_states(
    const SavedStates<const LaneOf<V>>& saved, const Segment<V>& segment, const Task& task,
    const StateRows<V>& carried) {
  for (int64_t s = 0; s < task.group.longer_than(segment.begin); ++s) {
    const LaneOf<V>* const row = saved.row(task.group.sequences[s], segment.index - 1);
    for (int64_t k = 0; k < segment.constants().num_state; ++k) {
      for_each_vector<V>(task, [&](int64_t v, int64_t channels) HYENAREC_INLINE_LAMBDA {
        carried.of(s, v)[k] =
            simd::load_first<V>(row + k * saved.channels + first_channel<V>(task, v), channels);
      });
    }
  }
}

}  // namespace hyenarec::scan
