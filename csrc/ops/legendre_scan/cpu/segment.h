// Segments and chunks as the scan's stages see them: their tables, their contractions, and how chunks are
// evaluated.
#pragma once

#include <algorithm>
#include <cstdint>

#include "parameters.h"

namespace hyenarec::scan {

// What all of a call's tasks read.
template <typename V>
struct Scan {
  const SegmentTables<LaneOf<V>>& tables;
  const Contractions<LaneOf<V>>& contractions;
  const V* rows;  // the task's parameters, [vector][parameter_rows()]

  int64_t chunk() const { return tables.chunk; }
  int64_t num_coeffs() const { return tables.num_coeffs; }
  int64_t parameter_rows() const { return plain_parameter_rows(chunk()) + contractions.rows; }
  HYENAREC_INLINE ScanParameters<V> parameters(int64_t v) const {
    return {rows + v * parameter_rows(), chunk()};
  }
};

// What the scan passes through in one step, a chunk of a segment or a segment: the events [begin, end) of
// every sequence that has them.
template <typename V>
struct ScanStep {
  const Scan<V>& scan;
  const ScanPart<LaneOf<V>>& part;
  int64_t index;  // in the part
  int64_t begin;
  bool has_past;  // whether something happened before
  int64_t end = begin + part.tables->chunk;

  HYENAREC_INLINE const LegendreTables<LaneOf<V>>& tables() const { return *part.tables; }
  HYENAREC_INLINE const LegendreChunk<LaneOf<V>>& constants() const { return tables().chunks[index]; }
  HYENAREC_INLINE int64_t events() const { return tables().chunk; }
  // Only a step that has a successor has a contraction.
  HYENAREC_INLINE bool has_next() const { return index + 1 < static_cast<int64_t>(tables().chunks.size()); }
  HYENAREC_INLINE ContractionShape shape() const { return part.shape(index); }
  HYENAREC_INLINE const V* contracted(int64_t v) const {
    return scan.parameters(v).contracted() + part.rows[index];
  }
  // expm1(-decay events())
  HYENAREC_INLINE const V& decay_change(int64_t v) const {
    const bool is_segment = &part == &scan.contractions.between;
    const auto parameters = scan.parameters(v);
    return is_segment ? parameters.segment_decay_change() : parameters.chunk_decay_change();
  }
};

// A segment and its chunks.
template <typename V>
struct Segment : ScanStep<V> {
  bool is_cut;
  const ScanPart<LaneOf<V>>& within;

  HYENAREC_INLINE Segment(const Scan<V>& scan, int64_t at)
      : ScanStep<V>{scan, scan.contractions.between, at, at * scan.tables.segment, at > 0},
        is_cut(scan.tables.is_cut(at)),
        within(scan.contractions.within(is_cut)) {}

  HYENAREC_INLINE int64_t chunks() const { return static_cast<int64_t>(within.tables->chunks.size()); }
  HYENAREC_INLINE ScanStep<V> chunk(int64_t i) const {
    return {this->scan, within, i, this->begin + i * within.tables->chunk, this->has_past || i > 0};
  }
  // How many moments of chunk i are needed: for the next chunk's state, and for the segment's moments, even
  // where no sequence goes on to another segment. Their number must not depend on the batch, because rounding
  // depends on it.
  HYENAREC_INLINE int64_t num_moments(int64_t i) const {
    const int64_t moments = within.tables->chunks[i].num_moments;
    const bool has_gather = !is_cut && !this->scan.tables.gather.empty();
    return has_gather ? std::max(moments, gather(i).num_moments) : moments;
  }
  HYENAREC_INLINE const Gather<LaneOf<V>>& gather(int64_t i) const { return this->scan.tables.gather[i]; }
};

// Where the state is evaluated at each of a chunk's first `rows` events by itself, their basis and that of
// the rest of their block; nullptr where it is evaluated on the chunk as a whole. By itself at a sequence's
// end, where that is less work, and at the horizon's end, where the chunk's interval would reach beyond the
// state's and its polynomials would explode.
template <typename V>
HYENAREC_INLINE const LaneOf<V>* direct_basis(const ScanStep<V>& chunk, int64_t rows, LaneOf<V>* memory) {
  const int64_t local = chunk.constants().num_local, state = chunk.constants().num_state;
  const int64_t remaining = chunk.tables().horizon - chunk.index * chunk.events();
  const bool is_less_work =
      padded(rows) * state < local * (2 * state - local + 1) / 2 + chunk.events() / 2 * local;
  if (!chunk.has_past || (remaining >= chunk.events() && !is_less_work)) return nullptr;
  fill_basis(remaining, padded(rows), state, memory);
  return memory;
}

}  // namespace hyenarec::scan
