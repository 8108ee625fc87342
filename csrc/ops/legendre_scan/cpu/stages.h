// The stages of the scan over a task's sequences, each directly above its backward stage: what a state
// contributes to a chunk, from chunk to chunk, from chunk to segment, from segment to segment, into a
// segment.
#pragma once

#include <algorithm>
#include <cstdint>

#include "memory.h"

namespace hyenarec::scan {

// y = what the events before chunk i contribute to its first `rows` events and the rest of their block.
// `basis` is that of those events if they are evaluated directly, else nullptr.
template <typename V>
HYENAREC_INLINE void evaluate_state(
    const Segment<V>& segment, int64_t i, int64_t rows, const LaneOf<V>* basis,
    const ScanParameters<V>& parameters, const V* state, V* local, V* y) {
  const auto& tables = segment.tables;
  const auto& constants = tables.chunks[i];
  if (!segment.has_past(i)) {
    for (int64_t t = 0; t < padded(rows); ++t) y[t] = V{};
  } else if (basis) {
    evaluate_directly(basis, padded(rows), constants.num_state, state, parameters.decay_from_start, y);
  } else {
    multiply_upper(
        constants.local_by_column.data(), constants.num_local, constants.num_local, constants.num_state,
        state, local);
    evaluate(tables.basis.data(), tables.chunk, constants.num_local, local, parameters.decay_from_start, y);
  }
}

// dstate += the gradient of chunk i's first `rows` outputs, dy, through `evaluate_state`; the chunk has a
// past.
template <typename V>
HYENAREC_INLINE void evaluate_state_backward(
    const Segment<V>& segment, int64_t i, int64_t rows, const LaneOf<V>* basis,
    const ScanParameters<V>& parameters, const V* dy, V* folded, V* dlocal, V* dstate) {
  const auto& tables = segment.tables;
  const int64_t n = tables.num_coeffs;
  const auto& constants = tables.chunks[i];
  if (basis) {
    evaluate_directly_backward(
        basis, padded(rows), constants.num_state, dy, parameters.decay_from_start, dstate);
  } else {
    take_moments(
        tables.basis_by_column.data(), n, tables.chunk, constants.num_local, dy, parameters.decay_from_start,
        folded, dlocal);
    add_transposed_upper(
        constants.local.data(), n, constants.num_local, constants.num_state, dlocal, V{}, dstate);
  }
}

// Moves the states of a task's first sequences from the start of chunk i to its end, where the segment goes
// on.
template <typename V>
HYENAREC_INLINE void advance_chunk(
    const Segment<V>& segment, int64_t i, int64_t sequences, const StateRows<V>& moments,
    const StateRows<V>& states) {
  const auto& tables = segment.tables;
  const auto& constants = tables.chunks[i];
  for (int64_t v = 0; v < states.vectors; ++v) {
    if (segment.has_past(i))
      restrict_states(
          constants.restriction_change_by_column.data(), tables.num_coeffs, constants.num_state,
          constants.num_next, *segment.scan.parameters[v].chunk_decay_change, sequences, states.members(v));
    transfer_moments(
        segment.contracted(i, v), segment.contracted(i, std::min(v + 1, states.vectors - 1)),
        segment.part.shape(i), sequences, moments.members(v), states.members(v));
  }
}

// sum over the sequences of a[s] b[s], rows of vector v.
template <typename V>
HYENAREC_INLINE V
inner_product(const StateRows<V>& a, const StateRows<V>& b, int64_t v, int64_t sequences, int64_t count) {
  V sum = {};
  for (int64_t s = 0; s < sequences; ++s)
    sum += weighted_product<V>(a.of(s, v), b.of(s, v), count, [](int64_t) { return LaneOf<V>(1); });
  return sum;
}

// Moves the gradients of the states from the end of chunk i to its start, where the segment goes on, and adds
// to the gradients of its moments.
template <typename V>
HYENAREC_INLINE void advance_chunk_backward(
    const Segment<V>& segment, int64_t i, int64_t sequences, bool with_parameters,
    const BackwardMemory<V>& memory) {
  const Scan<V>& scan = segment.scan;
  const auto& tables = segment.tables;
  const auto& constants = tables.chunks[i];
  const auto shape = segment.part.shape(i);
  for (int64_t v = 0; v < memory.grads.vectors; ++v) {
    const auto grads = memory.grads.members(v);
    if (with_parameters)
      add_contraction_grads(
          shape, sequences, memory.moments(i).members(v), grads,
          memory.products(v).first + segment.part.rows[i]);
    transfer_moments_backward(
        segment.contracted(i, v), shape, sequences, grads, memory.moment_grads.members(v));
    if (!segment.has_past(i)) continue;
    restrict_states_backward(
        constants.restriction_change.data(), tables.num_coeffs, constants.num_state, constants.num_next,
        *scan.parameters[v].chunk_decay_change, sequences, grads);
    if (!with_parameters) continue;
    const V product = inner_product(memory.grads, memory.states(i), v, sequences, constants.num_state);
    memory.partial_sums(v).first[GradientLayout(scan.tables).far_decay] -=
        static_cast<LaneOf<V>>(tables.chunk) * product;
  }
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
          gather.matrix.data(), segment.scan.num_coeffs(), gather.num_moments, segment.between().num_moments,
          moments.of(s, v), *segment.scan.parameters[v].chunk_decay_change, segment_moments.of(s, v));
  }
}

// The gradients of chunk i's moments from those of the segment's moments, which are then moved to the chunk's
// start.
template <typename V>
HYENAREC_INLINE void gather_moments_backward(
    const Segment<V>& segment, int64_t i, int64_t sequences, bool with_parameters,
    const BackwardMemory<V>& memory) {
  const Scan<V>& scan = segment.scan;
  const auto& gather = segment.gather(i);
  const int64_t moments = segment.between().num_moments;
  const auto& grads = memory.moment_grads;
  for (int64_t v = 0; v < grads.vectors; ++v) {
    const V& step = *scan.parameters[v].chunk_decay_change;
    for (int64_t s = 0; s < sequences; ++s) {
      V* const from = memory.segment_moment_grads.of(s, v);
      multiply_upper(
          gather.by_column.data(), gather.num_moments, gather.num_moments, moments, from, grads.of(s, v));
      for (int64_t q = 0; q < moments; ++q) from[q] += step * from[q];
    }
    if (!with_parameters) continue;
    const auto events_left = static_cast<LaneOf<V>>(scan.tables.segment - (i + 1) * scan.chunk());
    memory.partial_sums(v).first[GradientLayout(scan.tables).far_decay] -=
        events_left * inner_product(memory.moments(i), grads, v, sequences, gather.num_moments);
  }
}

// Moves the carried states from the segment's start to its end.
template <typename V>
HYENAREC_INLINE void advance_segment(
    const Segment<V>& segment, int64_t sequences, const StateRows<V>& segment_moments,
    const StateRows<V>& carried) {
  const auto& constants = segment.between();
  const int64_t n = segment.scan.num_coeffs();
  for (int64_t v = 0; v < carried.vectors; ++v) {
    if (segment.index > 0)
      restrict_states(
          constants.restriction_change_by_column.data(), n, constants.num_state, constants.num_next,
          *segment.scan.parameters[v].segment_decay_change, sequences, carried.members(v));
    transfer_moments(
        segment.contracted_between(v), segment.contracted_between(std::min(v + 1, carried.vectors - 1)),
        segment.shape_between(), sequences, segment_moments.members(v), carried.members(v));
  }
}

// Moves the gradients of the carried states from the segment's end to its start, all but what goes through
// the segment's own chunks, and finds the gradients of its moments.
template <typename V>
HYENAREC_INLINE void advance_segment_backward(
    const Segment<V>& segment, int64_t sequences, bool with_parameters, const BackwardMemory<V>& memory) {
  const Scan<V>& scan = segment.scan;
  const auto& constants = segment.between();
  const auto shape = segment.shape_between();
  const int64_t n = scan.num_coeffs();
  const GradientLayout rows(scan.tables);
  const auto& grads = memory.carried_grads;
  std::fill_n(memory.segment_moment_grads.data, memory.segment_moment_grads.size(sequences), V{});
  in_pairs(grads.vectors, [&](auto size, int64_t v) HYENAREC_INLINE_LAMBDA {
    const auto products = memory.between_products(), partial_sums = memory.partial_sums(v);
    for (int m = 0; m < size() && with_parameters; ++m) {
      std::fill_n(products.of(m), shape.size(), V{});
      add_contraction_grads(
          shape, sequences, memory.segment_moments.members(v + m), grads.members(v + m), products.of(m));
    }
    if (with_parameters)
      contract_backward<size(), V>(
          constants.transfer.data(), shape, {products.first, products.stride},
          {partial_sums.first + rows.between, partial_sums.stride});
    for (int m = 0; m < size(); ++m) {
      transfer_moments_backward(
          segment.contracted_between(v + m), shape, sequences, grads.members(v + m),
          memory.segment_moment_grads.members(v + m));
      if (segment.index == 0) continue;
      restrict_states_backward(
          constants.restriction_change.data(), n, constants.num_state, constants.num_next,
          *scan.parameters[v + m].segment_decay_change, sequences, grads.members(v + m));
      if (!with_parameters) continue;
      const V product = inner_product(grads, memory.carried, v + m, sequences, constants.num_state);
      partial_sums.of(m)[rows.far_decay] -= static_cast<LaneOf<V>>(scan.tables.segment) * product;
    }
  });
}

// The states that a segment begins with: its part of those carried into it.
template <typename V>
HYENAREC_INLINE void enter_segment(
    const Segment<V>& segment, int64_t sequences, const StateRows<V>& carried, const StateRows<V>& states) {
  const auto& between = segment.between();
  for (int64_t s = 0; s < sequences; ++s) {
    for (int64_t v = 0; v < states.vectors; ++v) {
      const V* const from = carried.of(s, v);
      V* const to = states.of(s, v);
      const int64_t rows = std::min(segment.is_cut ? between.num_state : between.num_local, states.pitch);
      if (segment.is_cut)
        std::copy_n(from, rows, to);
      else
        multiply_upper(between.local_by_column.data(), between.num_local, rows, between.num_state, from, to);
      for (int64_t k = rows; k < states.pitch; ++k) to[k] = V{};
    }
  }
}

// The gradients of the states that a segment began with go to those carried into it.
template <typename V>
HYENAREC_INLINE void enter_segment_backward(
    const Segment<V>& segment, int64_t sequences, const BackwardMemory<V>& memory) {
  const auto& between = segment.between();
  for (int64_t s = 0; s < sequences; ++s) {
    for (int64_t v = 0; v < memory.grads.vectors; ++v) {
      V* const from = memory.grads.of(s, v);
      V* const to = memory.carried_grads.of(s, v);
      const int64_t rows =
          std::min(segment.is_cut ? between.num_state : between.num_local, memory.grads.pitch);
      if (segment.is_cut) {
        for (int64_t k = 0; k < rows; ++k) to[k] += from[k];
      } else {
        add_transposed_upper(
            between.local.data(), segment.scan.num_coeffs(), rows, between.num_state, from, V{}, to);
      }
      std::fill_n(from, memory.grads.pitch, V{});
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
        const V value = k < segment.between().num_next ? carried.of(s, v)[k] : V{};
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
    for (int64_t k = 0; k < segment.between().num_state; ++k) {
      for_each_vector<V>(task, [&](int64_t v, int64_t channels) HYENAREC_INLINE_LAMBDA {
        carried.of(s, v)[k] =
            simd::load_first<V>(row + k * saved.channels + first_channel<V>(task, v), channels);
      });
    }
  }
}

}  // namespace hyenarec::scan
