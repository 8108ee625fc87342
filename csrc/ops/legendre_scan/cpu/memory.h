// What a task keeps while it scans, forwards and backwards, and the sums that it leaves for the parameters'
// gradients.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "../gradient_mask.h"
#include "segment.h"

namespace hyenarec::scan {

// A forward task's memory, in vectors.
template <typename V>
struct ForwardMemory {
  StateRows<V> states, moments;           // of the sequences that go on after a chunk
  StateRows<V> carried, segment_moments;  // of those that go on after a segment
  V* local;                               // [N]
  DirectBasis<V> basis{nullptr};

  ForwardMemory(Scratch& scratch, const Task& task, const Scan<V>& scan) {
    const int64_t n = scan.num_coeffs();
    const int64_t going_on = task.group.longer_than(scan.chunk()) * task.vectors * n;
    const int64_t passing = task.group.longer_than(scan.tables.segment) * task.vectors * n;
    V* next = scratch.get<V>(2 * (going_on + passing) + n + DirectBasis<V>::size(n));
    const auto rows = [&](int64_t size) {
      const StateRows<V> result{next, task.vectors, n};
      std::fill_n(next, size, V{});
      next += size;
      return result;
    };
    states = rows(going_on);
    moments = rows(going_on);
    carried = rows(passing);
    segment_moments = rows(passing);
    local = next;
    basis = DirectBasis<V>(next + n);
  }
};

// The sums over a task that become the parameters' gradients, rows of lanes: those of each scan part's
// coefficients, lags [C], the gradient of the near kernel, and far_decay [1].
struct GradientLayout {
  int64_t whole, cut, between, lags, far_decay, count;

  template <typename scalar_t>
  explicit GradientLayout(const SegmentTables<scalar_t>& tables)
      : whole(0),
        cut(whole + tables.whole.tables.num_degrees),
        between(cut + tables.cut.tables.num_degrees),
        lags(between + tables.num_coeffs),
        far_decay(lags + tables.chunk),
        count(far_decay + 1) {}
  // Of a part, as Contractions::parts() numbers them.
  int64_t part(int64_t number) const { return number == 0 ? whole : number == 1 ? cut : between; }
};

// Adds rows of partial sums, in the activations' precision, to a task's sums in double, and clears them.
template <typename V>
HYENAREC_INLINE void flush(V* partial_sums, int64_t rows, double* sums) {
  constexpr int kHalf = simd::kLanes<V> / 2;  // as doubles they fill a register
  using Half = simd::Vector<LaneOf<V>, kHalf>;
  using Doubles = simd::Vector<double, kHalf>;
  const LaneOf<V>* partial = reinterpret_cast<const LaneOf<V>*>(partial_sums);
  for (int64_t i = 0; i < 2 * rows; ++i, partial += kHalf, sums += kHalf) {
    const auto wide = __builtin_convertvector(simd::load_lanes<Half>(partial), Doubles);
    simd::store(simd::load_lanes<Doubles>(sums) + wide, sums);
  }
  for (int64_t row = 0; row < rows; ++row) partial_sums[row] = V{};
}

// A backward task's memory, in vectors.
template <typename V>
class BackwardMemory {
 public:
  // Of the current segment: the states carried into it, for the sequences that have it, and its moments, for
  // those that go on after it.
  StateRows<V> carried, segment_moments;
  StateRows<V> grads;          // of the states that chunks end with, then of those they start with
  StateRows<V> carried_grads;  // the same for the states between segments
  StateRows<V> moment_grads, segment_moment_grads;
  V* local;  // [N]
  DirectBasis<V> basis{nullptr};

  // With `keep` there is room for the states and moments of a segment's chunks. `reached` are the
  // contractions that the task's sequences need, the first ones of the call's.
  BackwardMemory(
      Scratch& scratch, const Task& task, const Scan<V>& scan, const Contractions<LaneOf<V>>& reached,
      bool keep)
      : n_(scan.num_coeffs()),
        vectors_(task.vectors),
        sum_rows_(GradientLayout(scan.tables).count),
        product_rows_(reached.rows_within) {
    const Group& group = task.group;
    int64_t max_state = 0, max_moments = 0;  // of any chunk
    for (int64_t index = 0; index * scan.tables.segment < group.longest(); ++index) {
      const Segment<V> segment(scan, index);
      for (int64_t i = 0; i < segment.chunks(); ++i) {
        max_moments = std::max(max_moments, segment.num_moments(i));
        if (segment.has_past(i)) max_state = std::max(max_state, segment.tables.chunks[i].num_state);
      }
    }
    // Every later group of sequences is a subset of these.
    const int64_t going_on = group.longer_than(scan.chunk()) * vectors_;
    const int64_t passing = group.longer_than(scan.tables.segment) * vectors_;
    const int64_t in_segment = std::min(group.longest(), scan.tables.segment);
    const int64_t chunks = keep ? (in_segment + scan.chunk() - 1) / scan.chunk() : 0;
    const int64_t kept = chunks * going_on * (max_state + max_moments) + 2 * passing * n_;
    const int64_t cleared = going_on * max_state + passing * n_ + vectors_ * (sum_rows_ + product_rows_);
    const int64_t others =
        going_on * max_moments + passing * n_ + 2 * n_ * n_ + n_ + DirectBasis<V>::size(n_);
    V* next = scratch.get<V>(kept + cleared + others);
    const auto take = [&](int64_t size) { return std::exchange(next, next + size); };
    const auto take_rows = [&](int64_t count, int64_t pitch) {
      return StateRows<V>{take(count * pitch), vectors_, pitch};
    };
    states_ = take_rows(chunks * going_on, max_state);
    moments_ = take_rows(chunks * going_on, max_moments);
    kept_of_chunk_ = going_on;
    carried = take_rows(passing, n_);
    segment_moments = take_rows(passing, n_);
    std::fill_n(next, cleared, V{});
    grads = take_rows(going_on, max_state);
    carried_grads = take_rows(passing, n_);
    partial_sums_ = take(vectors_ * sum_rows_);
    products_ = take(vectors_ * product_rows_);
    moment_grads = take_rows(going_on, max_moments);
    segment_moment_grads = take_rows(passing, n_);
    between_products_ = take(2 * n_ * n_);
    local = take(n_);
    basis = DirectBasis<V>(next);
  }

  // The states that the segment's chunk i starts with, for the sequences that have it, if it has a past.
  HYENAREC_INLINE StateRows<V> states(int64_t i) const { return of_chunk(states_, i); }
  // Its moments, for the sequences that go on after it.
  HYENAREC_INLINE StateRows<V> moments(int64_t i) const { return of_chunk(moments_, i); }
  // Tells a LookAhead that fetches `rows` rows about what is kept of a sequence's chunk.
  HYENAREC_INLINE void watch(int64_t i, int64_t s, int64_t rows, LookAhead& ahead) const {
    if (rows == 0) return;
    for (const auto& kept : {states(i), moments(i)}) {
      const int64_t bytes = (kept.size(1) * sizeof(V) + rows - 1) / rows;
      ahead.read(kept.of(s, 0), bytes, bytes);
    }
  }
  // A vector's partial sums, laid out as GradientLayout says, for vectors from `v` on.
  HYENAREC_INLINE StridedRows<V> partial_sums(int64_t v) const {
    return {partial_sums_ + v * sum_rows_, sum_rows_};
  }
  // The gradients of contractions, moments times gradients of states: of each contraction within segments,
  // summed over the task, ...
  HYENAREC_INLINE StridedRows<V> products(int64_t v) const {
    return {products_ + v * product_rows_, product_rows_};
  }
  // ... and of one contraction between segments, [N, N] for two vectors.
  HYENAREC_INLINE StridedRows<V> between_products() const { return {between_products_, n_ * n_}; }

 private:
  HYENAREC_INLINE StateRows<V> of_chunk(const StateRows<V>& all, int64_t i) const {
    return {all.data + i * kept_of_chunk_ * all.pitch, vectors_, all.pitch};
  }

  const int64_t n_, vectors_, sum_rows_, product_rows_;
  int64_t kept_of_chunk_;  // sequences by vectors
  StateRows<V> states_, moments_;
  V *partial_sums_, *products_, *between_products_;
};

}  // namespace hyenarec::scan
