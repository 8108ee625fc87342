// A segment of the scan as its stages see it: its tables, its contractions, and how its chunks are evaluated.
#pragma once

#include <algorithm>
#include <cstdint>

#include "look_ahead.h"
#include "parameters.h"

namespace hyenarec::scan {

// What all of a call's tasks read.
template <typename V>
struct Scan {
  const SegmentTables<LaneOf<V>>& tables;
  const Contractions<LaneOf<V>>& contractions;
  const ScanParameters<V>* parameters;  // [vector]

  int64_t chunk() const { return tables.chunk; }
  int64_t num_coeffs() const { return tables.num_coeffs; }
};

// One segment of it: the events [begin, end) of every sequence that has them.
template <typename V>
struct Segment {
  const Scan<V>& scan;
  int64_t index;
  int64_t begin, end;
  bool is_cut;
  const ScanPart<LaneOf<V>>& part;
  const LegendreTables<LaneOf<V>>& tables;

  HYENAREC_INLINE Segment(const Scan<V>& of, int64_t at)
      : scan(of),
        index(at),
        begin(at * of.tables.segment),
        end(begin + of.tables.segment),
        is_cut(of.tables.is_cut(at)),
        part(of.contractions.within(is_cut)),
        tables(*part.tables) {}

  HYENAREC_INLINE int64_t chunks() const { return static_cast<int64_t>(tables.chunks.size()); }
  // Whether something happened before its chunk i.
  HYENAREC_INLINE bool has_past(int64_t i) const { return index > 0 || i > 0; }
  // How many moments of chunk i are needed: for the next chunk's state, and for the segment's moments, even
  // where no sequence goes on to another segment. Their number must not depend on the batch, because rounding
  // depends on it.
  HYENAREC_INLINE int64_t num_moments(int64_t i) const {
    const int64_t moments = tables.chunks[i].num_moments;
    return has_gather() ? std::max(moments, gather(i).num_moments) : moments;
  }
  HYENAREC_INLINE const V* contracted(int64_t i, int64_t v) const {
    return scan.parameters[v].contracted + part.rows[i];
  }

  // The scan from segment to segment. Only a segment that has a successor has a contraction.
  HYENAREC_INLINE const LegendreChunk<LaneOf<V>>& between() const {
    return scan.tables.between.chunks[index];
  }
  HYENAREC_INLINE bool has_gather() const { return !is_cut && !scan.tables.gather.empty(); }
  HYENAREC_INLINE const Gather<LaneOf<V>>& gather(int64_t i) const { return scan.tables.gather[i]; }
  HYENAREC_INLINE ContractionShape shape_between() const { return scan.contractions.between.shape(index); }
  HYENAREC_INLINE const V* contracted_between(int64_t v) const {
    return scan.parameters[v].contracted + scan.contractions.between.rows[index];
  }
};

// Whether the state is evaluated at each of the first `rows` events of chunk i by itself instead of on the
// chunk as a whole: at a sequence's end, where that is less work, and at the horizon's end, where the chunk's
// interval would reach beyond the state's and its polynomials would explode.
template <typename V>
HYENAREC_INLINE bool is_direct(const Segment<V>& segment, int64_t i, int64_t rows) {
  const auto& constants = segment.tables.chunks[i];
  const int64_t chunk = segment.tables.chunk, local = constants.num_local, state = constants.num_state;
  if (!segment.has_past(i)) return false;
  if ((i + 1) * chunk > segment.tables.horizon) return true;
  return padded(rows) * state < local * (2 * state - local + 1) / 2 + chunk / 2 * local;
}

// The basis at a chunk's events, for those that are evaluated directly.
template <typename V>
class DirectBasis {
 public:
  // The size of `memory`, in vectors.
  static int64_t size(int64_t num_coeffs) { return num_coeffs * kMaxChunk / simd::kLanes<V> + 1; }
  HYENAREC_INLINE explicit DirectBasis(V* memory) : memory_(reinterpret_cast<LaneOf<V>*>(memory)) {}

  // nullptr: the events are not evaluated directly.
  HYENAREC_INLINE const LaneOf<V>* fill(const Segment<V>& segment, int64_t i, int64_t rows) const {
    if (!is_direct(segment, i, rows)) return nullptr;
    const auto& tables = segment.tables;
    fill_basis(tables.horizon - i * tables.chunk, padded(rows), tables.chunks[i].num_state, memory_);
    return memory_;
  }

 private:
  LaneOf<V>* memory_;
};

// Tells a LookAhead that fetches `rows` rows about the first vector's contraction, which advance_chunk reads
// first.
template <typename V>
HYENAREC_INLINE void watch_contraction(const Segment<V>& segment, int64_t i, int64_t rows, LookAhead& ahead) {
  if (rows == 0) return;
  const int64_t size = segment.part.shape(i).size() * sizeof(V);
  const int64_t bytes = (size + rows - 1) / rows;
  ahead.read(segment.contracted(i, 0), bytes, bytes);
}

}  // namespace hyenarec::scan
