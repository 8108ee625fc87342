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
};

// Calls visit(integral constant size, first member) for two members at a time: they share what they are
// multiplied with.
template <typename Visit>
HYENAREC_INLINE void in_pairs(int64_t members, const Visit& visit) {
  int64_t first = 0;
  for (; first + 2 <= members; first += 2) visit(std::integral_constant<int, 2>{}, first);
  if (first < members) visit(std::integral_constant<int, 1>{}, first);
}

// As in_runs, from the last run to the first.
template <typename Visit>
HYENAREC_INLINE void in_runs_backwards(int64_t count, const Visit& visit) {
  if (count % 2 >= 1) visit(std::integral_constant<int, 1>{}, count -= 1);
  if (count % 4 >= 2) visit(std::integral_constant<int, 2>{}, count -= 2);
  if (count % 8 >= 4) visit(std::integral_constant<int, 4>{}, count -= 4);
  while (count > 0) visit(std::integral_constant<int, 8>{}, count -= 8);
}

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
      V sums[members][run()] = {};
      for (int64_t n = first + q; n < shape.degrees; ++n, transfer += run()) {
        for (int m = 0; m < members; ++m) {
          const V coefficient = coeffs.of(m)[n];
          for (int i = 0; i < run(); ++i) sums[m][i] += transfer[i] * coefficient;
        }
      }
      for (int m = 0; m < members; ++m) {
        V* const row = contracted.of(m) + q * shape.width + first;
        for (int i = 0; i < run(); ++i) row[i] = sums[m][i];
      }
    });
    for (int m = 0; m < members; ++m) {
      V* const row = contracted.of(m) + q * shape.width;
      for (int64_t p = shape.in_row(q); p < shape.width; ++p) row[p] = V{};
    }
  }
}

// coeffs_grad[n] += sum_{q, p} transfer(q, p, n) products[q][p] for each member: the transposed `contract`.
template <int members, typename V>
HYENAREC_INLINE void contract_backward(
    const LaneOf<V>* transfer, const ContractionShape& shape, const StridedRows<const V>& products,
    const StridedRows<V>& coeffs_grads) {
  for (int64_t q = 0; q < shape.moments; ++q) {
    in_runs(shape.in_row(q), [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
      V factors[members][run()];
      for (int m = 0; m < members; ++m) {
        const V* const row = products.of(m) + q * shape.width + first;
        for (int i = 0; i < run(); ++i) factors[m][i] = row[i];
      }
      for (int64_t n = first + q; n < shape.degrees; ++n, transfer += run()) {
        for (int m = 0; m < members; ++m) {
          V sum = transfer[0] * factors[m][0];
          for (int i = 1; i < run(); ++i) sum += transfer[i] * factors[m][i];
          coeffs_grads.of(m)[n] += sum;
        }
      }
    });
  }
}

// state = exp(-decay C) restriction state for each member, in place, from `before` coefficients to `after`,
// not more: a run of rows needs no row before it. `step` is expm1(-decay C), and the restriction (by column,
// [N, N]) comes as a change, too: what little changes is added last, so that a chain of chunks doesn't lose
// digits.
template <typename V>
HYENAREC_INLINE void restrict_states(
    const LaneOf<V>* change_by_column, int64_t num_coeffs, int64_t before, int64_t after, const V& step,
    int64_t members, const StridedRows<V>& all_states) {
  in_pairs(members, [&](auto size, int64_t member) HYENAREC_INLINE_LAMBDA {
    const auto states = all_states.from(member);
    in_runs(after, [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
      V change[size()][run()] = {};
      const LaneOf<V>* column = change_by_column + first * num_coeffs + first;
      for (int64_t j = first; j < before; ++j, column += num_coeffs) {
        for (int m = 0; m < size(); ++m) {
          const V value = states.of(m)[j];
          for (int i = 0; i < run(); ++i) change[m][i] += column[i] * value;
        }
      }
      for (int m = 0; m < size(); ++m) {
        V* const state = states.of(m) + first;
        for (int i = 0; i < run(); ++i) state[i] += change[m][i] + step * (state[i] + change[m][i]);
      }
    });
  });
}

// dstate = exp(-decay C) restrictionᵀ dstate for each member, in place, from the gradients of `after`
// coefficients to those of `before`, not fewer, zero beyond the first: a run of columns needs no column after
// it.
template <typename V>
HYENAREC_INLINE void restrict_states_backward(
    const LaneOf<V>* restriction_change, int64_t num_coeffs, int64_t before, int64_t after, const V& step,
    int64_t members, const StridedRows<V>& all_dstates) {
  in_pairs(members, [&](auto size, int64_t member) HYENAREC_INLINE_LAMBDA {
    const auto dstates = all_dstates.from(member);
    in_runs_backwards(before, [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
      V change[size()][run()] = {};
      const LaneOf<V>* row = restriction_change + first;
      for (int64_t i = 0; i < std::min<int64_t>(after, first + run()); ++i, row += num_coeffs) {
        for (int m = 0; m < size(); ++m) {
          const V value = dstates.of(m)[i];
          for (int j = 0; j < run(); ++j) change[m][j] += row[j] * value;
        }
      }
      for (int m = 0; m < size(); ++m) {
        V* const dstate = dstates.of(m) + first;
        for (int j = 0; j < run(); ++j) dstate[j] += change[m][j] + step * (dstate[j] + change[m][j]);
      }
    });
  });
}

// state[p] += sum_q contracted[q][p] moments[q] for each member. Fetches `next`, as large as `contracted`,
// into the cache meanwhile.
template <typename V>
HYENAREC_INLINE void transfer_moments(
    const V* contracted, const V* next, const ContractionShape& shape, int64_t members,
    const StridedRows<V>& all_moments, const StridedRows<V>& all_states) {
  in_pairs(members, [&](auto size, int64_t member) HYENAREC_INLINE_LAMBDA {
    const auto states = all_states.from(member), moments = all_moments.from(member);
    in_runs(shape.width, [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
      V sums[size()][run()] = {};
      const V* row = contracted + first;
      const V* next_row = next + first;
      for (int64_t q = 0; q < shape.in_column(first); ++q, row += shape.width) {
        if (member == 0) {
          for (int i = 0; i < run(); ++i) __builtin_prefetch(next_row + i);
          next_row += shape.width;
        }
        for (int m = 0; m < size(); ++m) {
          const V moment = moments.of(m)[q];
          for (int i = 0; i < run(); ++i) sums[m][i] += row[i] * moment;
        }
      }
      for (int m = 0; m < size(); ++m) {
        V* const state = states.of(m) + first;
        for (int i = 0; i < run(); ++i) state[i] += sums[m][i];
      }
    });
  });
}

// dmoments[q] += sum_p contracted[q][p] dstate[p] for each member.
template <typename V>
HYENAREC_INLINE void transfer_moments_backward(
    const V* contracted, const ContractionShape& shape, int64_t members, const StridedRows<V>& all_dstates,
    const StridedRows<V>& all_dmoments) {
  in_pairs(members, [&](auto size, int64_t member) HYENAREC_INLINE_LAMBDA {
    const auto dstates = all_dstates.from(member), dmoments = all_dmoments.from(member);
    in_runs(shape.moments, [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
      V sums[size()][run()];
      for (int m = 0; m < size(); ++m) {
        for (int i = 0; i < run(); ++i) sums[m][i] = dmoments.of(m)[first + i];
      }
      const V* const rows = contracted + first * shape.width;
      for (int64_t p = 0; p < shape.in_row(first); ++p) {
        for (int m = 0; m < size(); ++m) {
          const V value = dstates.of(m)[p];
          for (int i = 0; i < run(); ++i) sums[m][i] += rows[i * shape.width + p] * value;
        }
      }
      for (int m = 0; m < size(); ++m) {
        for (int i = 0; i < run(); ++i) dmoments.of(m)[first + i] = sums[m][i];
      }
    });
  });
}

// products[q][p] += sum over the members of moments[q] dstate[p], which mean nothing where a contraction is
// 0.
template <typename V>
HYENAREC_INLINE void add_contraction_grads(
    const ContractionShape& shape, int64_t members, const StridedRows<V>& all_moments,
    const StridedRows<V>& all_dstates, V* products) {
  in_pairs(shape.moments, [&](auto size, int64_t q) HYENAREC_INLINE_LAMBDA {
    in_runs(shape.in_row(q), [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
      V* const rows = products + q * shape.width + first;
      V sums[size()][run()];
      for (int i = 0; i < size(); ++i) {
        for (int p = 0; p < run(); ++p) sums[i][p] = rows[i * shape.width + p];
      }
      for (int64_t m = 0; m < members; ++m) {
        const V* const moments = all_moments.of(m) + q;
        const V* const dstate = all_dstates.of(m) + first;
        for (int i = 0; i < size(); ++i) {
          for (int p = 0; p < run(); ++p) sums[i][p] += moments[i] * dstate[p];
        }
      }
      for (int i = 0; i < size(); ++i) {
        for (int p = 0; p < run(); ++p) rows[i * shape.width + p] = sums[i][p];
      }
    });
  });
}

}  // namespace hyenarec::scan
