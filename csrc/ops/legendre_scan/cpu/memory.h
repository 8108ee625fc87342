// What a task keeps while it scans, forwards and backwards, and the sums that it leaves for the parameters'
// gradients.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../gradient_mask.h"
#include "segment.h"

namespace hyenarec::scan {

// A forward task's memory.
template <typename V>
struct ForwardMemory {
  StateRows<V> states, moments;           // of the sequences that go on after a chunk
  StateRows<V> carried, segment_moments;  // of those that go on after a segment
  V* local;                               // [N]
  LaneOf<V>* basis;                       // room for direct_basis

  ForwardMemory(Scratch& scratch, const Task& task, const Scan<V>& scan)
      : local(scratch.get<V>(scan.num_coeffs())),
        basis(scratch.get<LaneOf<V>>(scan.num_coeffs() * kMaxChunk)) {
    const auto rows_after = [&](int64_t time) {
      const int64_t vectors = task.group.longer_than(time) * task.vectors;
      return StateRows<V>{scratch.zeros<V>(vectors * scan.num_coeffs()), task.vectors, scan.num_coeffs()};
    };
    states = rows_after(scan.chunk());
    moments = rows_after(scan.chunk());
    carried = rows_after(scan.tables.segment);
    segment_moments = rows_after(scan.tables.segment);
  }
};

// The sums over a task that become the parameters' gradients, rows of lanes: those of each ScanPart's
// coefficients, lags [C], the gradient of the near kernel, and far_decay [1].
struct GradientLayout {
  int64_t lags, far_decay, count;

  template <typename scalar_t>
  explicit GradientLayout(const Contractions<scalar_t>& contractions)
      : lags(contractions.between.first_sum + contractions.between.num_degrees()),
        far_decay(lags + contractions.whole.tables->chunk),
        count(far_decay + 1) {}
};

// Sums over tasks, as rows of a vector's lanes, all zero at first: [group][vector][rows, lanes].
struct Sums {
  std::vector<double> values;
  int64_t vectors, rows, lanes;

  int64_t start(int64_t group, int64_t vector) const { return (group * vectors + vector) * rows * lanes; }
  double* of(const Task& task, int64_t v) {
    return values.data() + start(task.group_index, task.first_vector + v);
  }
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

// What a backward task keeps of a step of the scan.
template <typename V>
struct StepMemory {
  StateRows<V> states, moments;  // that it starts with, and of its events
  StateRows<V> grads;            // of the states that it ends with, then of those it starts with
  StateRows<V> moment_grads;
};

// A backward task's memory.
template <typename V>
class BackwardMemory {
 public:
  // Of the current segment. The states are those carried into it, of the sequences that have it; its moments
  // are of those that go on after it.
  StepMemory<V> segment;
  V* local;          // [N]
  LaneOf<V>* basis;  // room for direct_basis
  // Each vector's sums, laid out as GradientLayout says, and its gradients of contractions, moments times
  // gradients of states: of all those within segments, summed over the task, and of the segment's.
  StridedRows<V> partial_sums, products, segment_products;

  // With `keep` there is room for the states and moments of a segment's chunks. `reached` are the
  // contractions that the task's sequences need, the first ones of the call's.
  BackwardMemory(
      Scratch& scratch, const Task& task, const Scan<V>& scan, const Contractions<LaneOf<V>>& reached,
      bool keep)
      : local(scratch.get<V>(scan.num_coeffs())),
        basis(scratch.get<LaneOf<V>>(scan.num_coeffs() * kMaxChunk)),
        far_decay_(GradientLayout(reached).far_decay) {
    const Group& group = task.group;
    const int64_t vectors = task.vectors, n = scan.num_coeffs();
    int64_t max_state = 0, max_moments = 0;  // of any chunk
    for (int64_t index = 0; index * scan.tables.segment < group.longest(); ++index) {
      const Segment<V> of(scan, index);
      for (int64_t i = 0; i < of.chunks(); ++i) {
        max_moments = std::max(max_moments, of.num_moments(i));
        if (of.chunk(i).has_past) max_state = std::max(max_state, of.chunk(i).constants().num_state);
      }
    }
    // Every later group of sequences is a subset of these.
    const int64_t going_on = group.longer_than(scan.chunk());
    const int64_t passing = group.longer_than(scan.tables.segment);
    const int64_t in_segment = std::min(group.longest(), scan.tables.segment);
    kept_of_chunk_ = keep ? going_on : 0;
    const int64_t kept = (in_segment + scan.chunk() - 1) / scan.chunk() * kept_of_chunk_;
    const auto rows = [&](int64_t sequences, int64_t pitch) {
      return StateRows<V>{scratch.get<V>(sequences * vectors * pitch), vectors, pitch};
    };
    const auto zeros = [&](int64_t sequences, int64_t pitch) {
      return StateRows<V>{scratch.zeros<V>(sequences * vectors * pitch), vectors, pitch};
    };
    const auto of_vectors = [&](int64_t size) {
      return StridedRows<V>{scratch.zeros<V>(vectors * size), size};
    };
    chunk_ = {
        rows(kept, max_state), rows(kept, max_moments), zeros(going_on, max_state),
        rows(going_on, max_moments)};
    segment = {rows(passing, n), rows(passing, n), zeros(passing, n), rows(passing, n)};
    partial_sums = of_vectors(GradientLayout(reached).count);
    products = of_vectors(reached.rows_within);
    segment_products = of_vectors(passing > 0 ? n * n : 0);
  }

  // Of chunk i of the segment: its states for the sequences that have it, if it has a past; its moments for
  // those that go on after it.
  HYENAREC_INLINE StepMemory<V> chunk(int64_t i) const {
    StepMemory<V> memory = chunk_;
    memory.states.data += i * memory.states.size(kept_of_chunk_);
    memory.moments.data += i * memory.moments.size(kept_of_chunk_);
    return memory;
  }
  HYENAREC_INLINE V& far_decay(int64_t v) const { return partial_sums.of(v)[far_decay_]; }

 private:
  int64_t far_decay_, kept_of_chunk_;  // sequences
  StepMemory<V> chunk_;                // of the segment's first one
};

}  // namespace hyenarec::scan
