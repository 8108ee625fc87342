// The arithmetic between chunks: how states are restricted to a shorter horizon, and how moments become
// states. See ../tables.h for the method and chunk.h for why everything is forced inline.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "chunk.h"

namespace hyenarec::scan {

// Rows of the same kind for each of some sequences, or of some vectors of channels: `stride` apart.
template <typename V>
struct StridedRows {
  V* first;
  int64_t stride;

  HYENAREC_INLINE V* of(int64_t member) const { return first + member * stride; }
  HYENAREC_INLINE StridedRows from(int64_t member) const { return {of(member), stride}; }
  HYENAREC_INLINE StridedRows at(int64_t number) const { return {first + number, stride}; }
  HYENAREC_INLINE operator StridedRows<const V>() const { return {first, stride}; }
};

// As in_runs, from the last run to the first.
template <typename Visit>
HYENAREC_INLINE void in_runs_backwards(int64_t count, const Visit& visit) {
  if (count % 2 >= 1) visit(std::integral_constant<int, 1>{}, count -= 1);
  if (count % 4 >= 2) visit(std::integral_constant<int, 2>{}, count -= 2);
  if (count % 8 >= 4) visit(std::integral_constant<int, 4>{}, count -= 4);
  while (count > 0) visit(std::integral_constant<int, 8>{}, count -= 8);
}

// For each of a few members, the sums of a run of numbers: they stay in registers.
template <typename V, int members, int run>
struct RunSums {
  V of[members][run];

  // Of the numbers that lie at `first` in each member's row.
  HYENAREC_INLINE void load(const StridedRows<const V>& rows, int64_t first) {
    for (int m = 0; m < members; ++m) {
      for (int i = 0; i < run; ++i) of[m][i] = rows.of(m)[first + i];
    }
  }
  HYENAREC_INLINE void store(const StridedRows<V>& rows, int64_t first) const {
    for (int m = 0; m < members; ++m) {
      for (int i = 0; i < run; ++i) rows.of(m)[first + i] = of[m][i];
    }
  }
  // sums[i] += factors[i stride] row[at] for each member.
  template <typename factor_t>
  HYENAREC_INLINE void add(
      const factor_t* factors, const StridedRows<const V>& rows, int64_t at, int64_t stride = 1) {
    for (int m = 0; m < members; ++m) {
      const V value = rows.of(m)[at];
      for (int i = 0; i < run; ++i) of[m][i] += factors[i * stride] * value;
    }
  }
};

// A transfer table contracted with coefficients, contracted[q][p] = sum_n coeffs[n] transfer(q, p, n): what
// each of a chunk's moments adds to each coefficient of the next state. Rows of `width`.
struct ContractionShape {
  int64_t moments;  // q
  int64_t width;    // p
  int64_t degrees;  // n; where p + q >= degrees it is 0

  HYENAREC_INLINE int64_t size() const { return moments * width; }
  // Numbers of row q that are not 0; of column p.
  HYENAREC_INLINE int64_t in_row(int64_t q) const { return std::min(width, degrees - q); }
  HYENAREC_INLINE int64_t in_column(int64_t p) const { return std::min(moments, degrees - p); }
};

// Computes contractions for each member. `transfer` lies by run.
template <int members, typename V>
HYENAREC_INLINE void contract(
    const LaneOf<V>* transfer, const ContractionShape& shape, const StridedRows<const V>& coeffs,
    const StridedRows<V>& contracted) {
  for (int64_t q = 0; q < shape.moments; ++q) {
    in_runs(shape.in_row(q), [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
      RunSums<V, members, run()> sums{};
      for (int64_t n = first + q; n < shape.degrees; ++n, transfer += run()) sums.add(transfer, coeffs, n);
      sums.store(contracted, q * shape.width + first);
    });
    for (int m = 0; m < members; ++m) clear(contracted.of(m) + q * shape.width, shape.in_row(q), shape.width);
  }
}

// coeffs_grad[n] += sum_{q, p} transfer(q, p, n) products[q][p] for each member: the transposed `contract`.
template <int members, typename V>
HYENAREC_INLINE void contract_backward(
    const LaneOf<V>* transfer, const ContractionShape& shape, const StridedRows<const V>& products,
    const StridedRows<V>& coeffs_grads) {
  for (int64_t q = 0; q < shape.moments; ++q) {
    in_runs(shape.in_row(q), [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
      RunSums<V, members, run()> factors;
      factors.load(products, q * shape.width + first);
      for (int64_t n = first + q; n < shape.degrees; ++n, transfer += run()) {
        for (int m = 0; m < members; ++m) {
          V sum = transfer[0] * factors.of[m][0];
          for (int i = 1; i < run(); ++i) sum += transfer[i] * factors.of[m][i];
          coeffs_grads.of(m)[n] += sum;
        }
      }
    });
  }
}

// state = (1 + step) (state + change) for a run of each member's state, where change[i] = sum_j
// matrix[j][first + i] state[j] for j in [begin, end). What little changes is added last, so that a chain of
// chunks doesn't lose digits.
template <int members, int run, typename V>
HYENAREC_INLINE void change_run(
    const LaneOf<V>* matrix, int64_t pitch, int64_t first, int64_t begin, int64_t end, const V& step,
    const StridedRows<V>& states) {
  RunSums<V, members, run> change{};
  const LaneOf<V>* row = matrix + begin * pitch + first;
  for (int64_t j = begin; j < end; ++j, row += pitch) change.add(row, states, j);
  for (int m = 0; m < members; ++m) {
    V* const state = states.of(m) + first;
    for (int i = 0; i < run; ++i) state[i] += change.of[m][i] + step * (state[i] + change.of[m][i]);
  }
}

// state = exp(-decay C) restriction state for each member, in place, from a chunk's num_state coefficients
// to num_next, not more: a run of rows needs no row before it. `step` is expm1(-decay C); the restriction
// comes as a change, too.
template <typename V>
HYENAREC_INLINE void restrict_states(
    const LegendreChunk<LaneOf<V>>& chunk, int64_t num_coeffs, const V& step, int64_t members,
    const StridedRows<V>& states) {
  in_runs<2>(members, [&](auto size, int64_t member) HYENAREC_INLINE_LAMBDA {
    in_runs(chunk.num_next, [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
      change_run<size(), run()>(
          chunk.restriction_change_by_column.data(), num_coeffs, first, first, chunk.num_state, step,
          states.from(member));
    });
  });
}

// dstate = exp(-decay C) restrictionᵀ dstate for each member, in place, from the gradients of num_next
// coefficients to those of num_state, not fewer, zero beyond the first: a run of columns needs no column
// after it.
template <typename V>
HYENAREC_INLINE void restrict_states_backward(
    const LegendreChunk<LaneOf<V>>& chunk, int64_t num_coeffs, const V& step, int64_t members,
    const StridedRows<V>& dstates) {
  in_runs<2>(members, [&](auto size, int64_t member) HYENAREC_INLINE_LAMBDA {
    in_runs_backwards(chunk.num_state, [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
      change_run<size(), run()>(
          chunk.restriction_change.data(), num_coeffs, first, 0,
          std::min<int64_t>(chunk.num_next, first + run()), step, dstates.from(member));
    });
  });
}

// state[p] += sum_q contracted[q][p] moments[q] for each member. Fetches `next`, as large as `contracted`,
// into the cache meanwhile.
template <typename V>
HYENAREC_INLINE void transfer_moments(
    const V* contracted, const V* next, const ContractionShape& shape, int64_t members,
    const StridedRows<V>& moments, const StridedRows<V>& states) {
  in_runs<2>(members, [&](auto size, int64_t member) HYENAREC_INLINE_LAMBDA {
    in_runs(shape.width, [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
      RunSums<V, size(), run()> sums{};
      for (int64_t q = 0; q < shape.in_column(first); ++q) {
        const int64_t at = q * shape.width + first;
        for (int i = 0; i < run() && member == 0; ++i) __builtin_prefetch(next + at + i);
        sums.add(contracted + at, moments.from(member), q);
      }
      for (int m = 0; m < size(); ++m) {
        V* const state = states.of(member + m) + first;
        for (int i = 0; i < run(); ++i) state[i] += sums.of[m][i];
      }
    });
  });
}

// dmoments[q] += sum_p contracted[q][p] dstate[p] for each member.
template <typename V>
HYENAREC_INLINE void transfer_moments_backward(
    const V* contracted, const ContractionShape& shape, int64_t members, const StridedRows<V>& dstates,
    const StridedRows<V>& dmoments) {
  in_runs<2>(members, [&](auto size, int64_t member) HYENAREC_INLINE_LAMBDA {
    in_runs(shape.moments, [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
      RunSums<V, size(), run()> sums;
      sums.load(dmoments.from(member), first);
      const V* const rows = contracted + first * shape.width;
      for (int64_t p = 0; p < shape.in_row(first); ++p)
        sums.add(rows + p, dstates.from(member), p, shape.width);
      sums.store(dmoments.from(member), first);
    });
  });
}

// products[q][p] += sum over the members of moments[q] dstate[p], which mean nothing where a contraction is
// 0.
template <typename V>
HYENAREC_INLINE void add_contraction_grads(
    const ContractionShape& shape, int64_t members, const StridedRows<V>& moments,
    const StridedRows<V>& dstates, V* products) {
  in_runs<2>(shape.moments, [&](auto size, int64_t q) HYENAREC_INLINE_LAMBDA {
    const StridedRows<V> rows{products + q * shape.width, shape.width};
    in_runs(shape.in_row(q), [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
      RunSums<V, size(), run()> sums;
      sums.load(rows, first);
      for (int64_t m = 0; m < members; ++m) sums.add(dstates.of(m) + first, {moments.of(m) + q, 1}, 0);
      sums.store(rows, first);
    });
  });
}

}  // namespace hyenarec::scan
