// The arithmetic of the Legendre scan within one chunk, for a tile of channels side by side in a vector. See
// legendre_tables.h for the method. Everything here is forced inline into a function that is compiled for one
// instruction set, so no calling convention and no function of another set is ever involved.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../../common/cpu/simd.h"
#include "../math.h"

namespace hyenarec::scan {

// Events are computed in blocks of so many, the last one filled up with zeros.
constexpr int64_t kBlock = 8;
// Rows of zeros that must lie before the inputs given to `add_lag_products`.
constexpr int64_t kZerosBefore = kBlock;

using simd::LaneOf;

// Calls visit(integral constant size, first) for the runs of for_each_run: a run's sums stay in registers.
template <typename Visit>
HYENAREC_INLINE void in_runs(int64_t count, const Visit& visit) {
  int64_t first = 0;
  for (; first + 8 <= count; first += 8) visit(std::integral_constant<int, 8>{}, first);
  if (first + 4 <= count) visit(std::integral_constant<int, 4>{}, first), first += 4;
  if (first + 2 <= count) visit(std::integral_constant<int, 2>{}, first), first += 2;
  if (first < count) visit(std::integral_constant<int, 1>{}, first);
}

// The same from the last run to the first.
template <typename Visit>
HYENAREC_INLINE void in_runs_backwards(int64_t count, const Visit& visit) {
  if (count % 2 >= 1) visit(std::integral_constant<int, 1>{}, count -= 1);
  if (count % 4 >= 2) visit(std::integral_constant<int, 2>{}, count -= 2);
  if (count % 8 >= 4) visit(std::integral_constant<int, 4>{}, count -= 4);
  while (count > 0) visit(std::integral_constant<int, 8>{}, count -= 8);
}

// The outputs [first, first + size) of `add_near`, four inputs at a time: a lag's weight is loaded once for all
// of them.
template <int size, int direction, typename V>
HYENAREC_INLINE void add_near_block(const V* kernel, const V* z, V* y, int64_t first) {
  V sums[size];
#pragma GCC unroll 16
  for (int i = 0; i < size; ++i) sums[i] = y[direction * (first + i)];
  for (int64_t s = 0; s < first; s += 4) {
    V inputs[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) inputs[j] = z[direction * (s + j)];
#pragma GCC unroll 19
    for (int place = -3; place < size; ++place) {
      const V weight = kernel[first - s + place];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        if (place + j >= 0 && place + j < size) sums[place + j] += weight * inputs[j];
      }
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < size; ++j) {
    const V input = z[direction * (first + j)];
#pragma GCC unroll 16
    for (int i = j; i < size; ++i) sums[i] += kernel[i - j] * input;
  }
#pragma GCC unroll 16
  for (int i = 0; i < size; ++i) y[direction * (first + i)] = sums[i];
}

// y[t] += sum_{s <= t} kernel[t - s] z[s] for t < rows, a multiple of kBlock; direction -1 walks z and y
// backwards from where they point.
template <int direction, typename V>
HYENAREC_INLINE void add_near(const V* kernel, const V* z, V* y, int64_t rows) {
  int64_t first = 0;
  if constexpr (sizeof(V) == 64) {  // 32 registers: enough for sixteen sums
    for (; first + 2 * kBlock <= rows; first += 2 * kBlock)
      add_near_block<2 * kBlock, direction>(kernel, z, y, first);
  }
  for (; first < rows; first += kBlock) add_near_block<kBlock, direction>(kernel, z, y, first);
}

// sums[lag] += sum_t dy[t] z[t - lag] for lag < rows, with z[-kZerosBefore .. -1] = 0.
template <typename V>
HYENAREC_INLINE void add_lag_products(const V* dy, const V* z, V* sums, int64_t rows) {
  for (int64_t first = 0; first < rows; first += kBlock) {
    V lags[kBlock];
    for (int i = 0; i < kBlock; ++i) lags[i] = sums[first + i];
    for (int64_t t = first; t < rows; t += 4) {
      V outputs[4];
      for (int j = 0; j < 4; ++j) outputs[j] = dy[t + j];
      for (int place = 3; place > -kBlock; --place) {
        const V input = z[t - first + place];
        for (int j = 0; j < 4; ++j) {
          if (j - place >= 0 && j - place < kBlock) lags[j - place] += outputs[j] * input;
        }
      }
    }
    for (int i = 0; i < kBlock; ++i) sums[first + i] = lags[i];
  }
}

// sum_t weight(t) a[t] b[t] for t < count, in four sums that don't wait for each other.
template <typename V, typename Weight>
HYENAREC_INLINE V weighted_product(const V* a, const V* b, int64_t count, const Weight& weight) {
  V sums[4] = {};
  int64_t t = 0;
  for (; t + 4 <= count; t += 4) {
    for (int i = 0; i < 4; ++i) sums[i] += weight(t + i) * a[t + i] * b[t + i];
  }
  for (; t < count; ++t) sums[0] += weight(t) * a[t] * b[t];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// out[i] = sum_{j >= i} matrix[i][j] in[j] for the first `rows` rows and `columns` columns of an upper triangular
// matrix [pitch, ...], given by column.
template <typename V>
HYENAREC_INLINE void multiply_upper(
    const LaneOf<V>* by_column, int64_t pitch, int64_t rows, int64_t columns, const V* in, V* out) {
  in_runs(rows, [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
    V sums[run()] = {};
    const LaneOf<V>* column = by_column + first * pitch + first;
    for (int64_t j = first; j < columns; ++j, column += pitch) {
      const V value = in[j];
      for (int i = 0; i < run(); ++i) sums[i] += column[i] * value;
    }
    for (int i = 0; i < run(); ++i) out[first + i] = sums[i];
  });
}

// out[j] += step out[j] + sum_{i <= j, i < rows} matrix[i][j] in[i] for j < columns: the transposed product of an
// upper triangular matrix [rows, pitch], added to what is left of `out`.
template <typename V>
HYENAREC_INLINE void add_transposed_upper(
    const LaneOf<V>* matrix,
    int64_t pitch,
    int64_t rows,
    int64_t columns,
    const V* in,
    const V& step,
    V* out) {
  in_runs(columns, [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
    V sums[run()];
    for (int j = 0; j < run(); ++j) sums[j] = step * out[first + j];
    const LaneOf<V>* row = matrix + first;
    for (int64_t i = 0; i < std::min<int64_t>(rows, first + run()); ++i, row += pitch) {
      const V value = in[i];
      for (int j = 0; j < run(); ++j) sums[j] += row[j] * value;
    }
    for (int j = 0; j < run(); ++j) out[first + j] += sums[j];
  });
}

// y[j] = fade[j] sum_{k < terms} basis[k][j] local[k] for the events of a chunk. Even polynomials are
// symmetric about its middle and odd ones antisymmetric, so two events share one sum of each.
template <typename V>
HYENAREC_INLINE void evaluate(
    const LaneOf<V>* basis, int64_t chunk, int64_t terms, const V* local, const V* fade, V* y) {
  in_runs(chunk / 2, [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
    V even[run()] = {}, odd[run()] = {};
    const LaneOf<V>* row = basis + first;
    for (int64_t k = 0; k + 1 < terms; k += 2, row += 2 * chunk) {
      const V a = local[k], b = local[k + 1];
      for (int j = 0; j < run(); ++j) even[j] += row[j] * a;
      for (int j = 0; j < run(); ++j) odd[j] += row[chunk + j] * b;
    }
    if (terms % 2 == 1) {
      const V a = local[terms - 1];
      for (int j = 0; j < run(); ++j) even[j] += row[j] * a;
    }
    for (int j = 0; j < run(); ++j) {
      const int64_t t = first + j, mirrored = chunk - 1 - t;
      y[t] = (even[j] + odd[j]) * fade[t];
      y[mirrored] = (even[j] - odd[j]) * fade[mirrored];
    }
  });
}

// moments[k] = sum_j basis[k][j] weight[j] z[j] for k < terms, the transposed `evaluate`, with the basis
// [num_coeffs, chunk] given by column. `folded` is room for `chunk` vectors.
template <typename V>
HYENAREC_INLINE void take_moments(
    const LaneOf<V>* by_column,
    int64_t num_coeffs,
    int64_t chunk,
    int64_t terms,
    const V* z,
    const V* weight,
    V* folded,
    V* moments) {
  const int64_t half = chunk / 2;
  V* const sums_of_pairs = folded;
  V* const differences = folded + half;
  for (int64_t t = 0; t < half; ++t) {
    const V early = z[t] * weight[t], late = z[chunk - 1 - t] * weight[chunk - 1 - t];
    sums_of_pairs[t] = early + late;
    differences[t] = early - late;
  }
  in_runs(terms / 2, [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
    V even[run()] = {}, odd[run()] = {};
    const LaneOf<V>* column = by_column + 2 * first;
    for (int64_t t = 0; t < half; ++t, column += num_coeffs) {
      const V a = sums_of_pairs[t], b = differences[t];
      for (int i = 0; i < run(); ++i) even[i] += column[2 * i] * a;
      for (int i = 0; i < run(); ++i) odd[i] += column[2 * i + 1] * b;
    }
    for (int i = 0; i < run(); ++i) {
      moments[2 * (first + i)] = even[i];
      moments[2 * (first + i) + 1] = odd[i];
    }
  });
  if (terms % 2 == 1) {
    V sums[4] = {};  // chunk / 2 is a multiple of 4
    const LaneOf<V>* column = by_column + terms - 1;
    for (int64_t t = 0; t < half; t += 4) {
      for (int i = 0; i < 4; ++i) sums[i] += column[(t + i) * num_coeffs] * sums_of_pairs[t + i];
    }
    moments[terms - 1] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
}

// basis[k][t] = P_k of `remaining` events at the event t, for k < count and t < rows; rows of `rows` numbers.
template <typename lane_t>
HYENAREC_INLINE void fill_basis(int64_t remaining, int64_t rows, int64_t count, lane_t* basis) {
  for (int64_t first = 0; first < rows; first += kBlock) {
    double place[kBlock], current[kBlock], previous[kBlock] = {};
    for (int t = 0; t < kBlock; ++t) {  // events past the last one are never used
      place[t] = legendre_position(std::min(first + t, remaining - 1), remaining);
      current[t] = 1.0;
    }
    for (int64_t k = 0; k < count; ++k) {
      const double ratio = static_cast<double>(k) / static_cast<double>(k + 1);
      for (int t = 0; t < kBlock; ++t) {
        basis[k * rows + first + t] = static_cast<lane_t>(current[t]);
        const double next = legendre_recurrence(ratio, place[t], current[t], previous[t]);
        previous[t] = current[t];
        current[t] = next;
      }
    }
  }
}

// y[t] = fade[t] sum_{k < count} basis[k][t] state[k] for t < rows, a multiple of kBlock.
template <typename V>
HYENAREC_INLINE void evaluate_directly(
    const LaneOf<V>* basis, int64_t rows, int64_t count, const V* state, const V* fade, V* y) {
  for (int64_t first = 0; first < rows; first += kBlock) {
    V sums[kBlock] = {};
    const LaneOf<V>* row = basis + first;
    for (int64_t k = 0; k < count; ++k, row += rows) {
      const V value = state[k];
      for (int t = 0; t < kBlock; ++t) sums[t] += row[t] * value;
    }
    for (int t = 0; t < kBlock; ++t) y[first + t] = sums[t] * fade[first + t];
  }
}

// dstate[k] += sum_{t < rows} basis[k][t] fade[t] dy[t] for k < count: its transposed.
template <typename V>
HYENAREC_INLINE void add_direct_grads(
    const LaneOf<V>* basis, int64_t rows, int64_t count, const V* dy, const V* fade, V* dstate) {
  for (int64_t first = 0; first < rows; first += kBlock) {
    V weighted[kBlock];
    for (int t = 0; t < kBlock; ++t) weighted[t] = dy[first + t] * fade[first + t];
    const LaneOf<V>* row = basis + first;
    for (int64_t k = 0; k < count; ++k, row += rows) {
      V sums[2] = {row[0] * weighted[0], row[1] * weighted[1]};
      for (int t = 2; t < kBlock; ++t) sums[t % 2] += row[t] * weighted[t];
      dstate[k] += sums[0] + sums[1];
    }
  }
}

// Rows of the same kind for each of some sequences, or of some vectors of channels: `stride` apart.
template <typename V>
struct Members {
  V* first;
  int64_t stride;

  HYENAREC_INLINE V* of(int64_t member) const { return first + member * stride; }
  HYENAREC_INLINE Members from(int64_t member) const { return {of(member), stride}; }
};

// Calls visit(integral constant size, first member) for two members at a time: they share what they are
// multiplied with.
template <typename Visit>
HYENAREC_INLINE void in_pairs(int64_t members, const Visit& visit) {
  int64_t first = 0;
  for (; first + 2 <= members; first += 2) visit(std::integral_constant<int, 2>{}, first);
  if (first < members) visit(std::integral_constant<int, 1>{}, first);
}

// A transfer table contracted with coefficients, contracted[q][p] = sum_n coeffs[n] transfer(q, p, n): what each of
// a chunk's moments adds to each coefficient of the next state. Rows of `width`.
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
    const LaneOf<V>* transfer,
    const ContractionShape& shape,
    const Members<const V>& coeffs,
    const Members<V>& contracted) {
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
HYENAREC_INLINE void add_contracted_grad(
    const LaneOf<V>* transfer,
    const ContractionShape& shape,
    const Members<const V>& products,
    const Members<V>& coeffs_grads) {
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

// state = exp(-decay C) restriction state for each member, in place, from `before` coefficients to `after`, not more:
// a run of rows needs no row before it. `step` is expm1(-decay C), and the restriction (by column, [N, N]) comes as
// a change, too: what little changes is added last, so that a chain of chunks doesn't lose digits.
template <typename V>
HYENAREC_INLINE void advance(
    const LaneOf<V>* change_by_column,
    int64_t num_coeffs,
    int64_t before,
    int64_t after,
    const V& step,
    int64_t members,
    const Members<V>& all_states) {
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

// state[p] += sum_q contracted[q][p] moments[q] for each member. Fetches `next`, as large as `contracted`, into the
// cache meanwhile.
template <typename V>
HYENAREC_INLINE void add_moments(
    const V* contracted,
    const V* next,
    const ContractionShape& shape,
    int64_t members,
    const Members<V>& all_moments,
    const Members<V>& all_states) {
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

// dstate = exp(-decay C) restrictionᵀ dstate for each member, in place, from the gradients of `after` coefficients to
// those of `before`, not fewer, zero beyond the first: a run of columns needs no column after it.
template <typename V>
HYENAREC_INLINE void advance_transposed(
    const LaneOf<V>* restriction_change,
    int64_t num_coeffs,
    int64_t before,
    int64_t after,
    const V& step,
    int64_t members,
    const Members<V>& all_dstates) {
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

// products[q][p] += sum over the members of moments[q] dstate[p], which mean nothing where a contraction is 0.
template <typename V>
HYENAREC_INLINE void add_moment_products(
    const ContractionShape& shape,
    int64_t members,
    const Members<V>& all_moments,
    const Members<V>& all_dstates,
    V* products) {
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

// dmoments[q] += sum_p contracted[q][p] dstate[p] for each member.
template <typename V>
HYENAREC_INLINE void add_moment_grads(
    const V* contracted,
    const ContractionShape& shape,
    int64_t members,
    const Members<V>& all_dstates,
    const Members<V>& all_dmoments) {
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

}  // namespace hyenarec::scan
