// The arithmetic within one chunk, for channels side by side in a vector. See ../tables.h for the method.
// Everything here is forced inline into a function that is compiled for one instruction set, so no calling
// convention and no function of another set is ever involved.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../../common/cpu/simd.h"
#include "../math.h"
#include "../tables.h"

namespace hyenarec::scan {

// Events are computed in blocks of so many, the last one filled up with zeros.
constexpr int64_t kBlock = 8;
// Rows of zeros that must lie before the inputs given to `add_near_kernel_grads`.
constexpr int64_t kZerosBefore = kBlock;
// Events of the longest chunk.
constexpr int64_t kMaxChunk = std::max(kShortChunk, kLongChunk);
static_assert(kShortChunk % kBlock == 0 && kLongChunk % kBlock == 0, "chunks are computed in whole blocks");

using simd::LaneOf;

// Calls visit(integral constant size, first) for runs as those of for_each_run, the longest of `size`: what
// belongs to a run stays in registers. Each shorter one comes at most once, which the compiler must be told.
template <int size = 8, bool once = false, typename Visit>
HYENAREC_INLINE void in_runs(int64_t count, const Visit& visit, int64_t first = 0) {
  while (first + size <= count) {
    visit(std::integral_constant<int, size>{}, first);
    first += size;
    if (once) break;
  }
  if constexpr (size > 1) in_runs<size / 2, true>(count, visit, first);
}

// The outputs [first, first + size) of `add_near`, four inputs at a time: a lag's weight is loaded once for
// all of them. Direction -1 walks z and y backwards from where they point.
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

// y[t] += sum_{s <= t} kernel[t - s] z[s] for t < rows, a multiple of kBlock.
template <int direction = 1, typename V>
HYENAREC_INLINE void add_near(const V* kernel, const V* z, V* y, int64_t rows) {
  int64_t first = 0;
  if constexpr (sizeof(V) == 64) {  // 32 registers: enough for sixteen sums
    for (; first + 2 * kBlock <= rows; first += 2 * kBlock)
      add_near_block<2 * kBlock, direction>(kernel, z, y, first);
  }
  for (; first < rows; first += kBlock) add_near_block<kBlock, direction>(kernel, z, y, first);
}

// dz[s] += sum_{s <= t < rows} kernel[t - s] dy[t]: its transposed, the same walked backwards.
template <typename V>
HYENAREC_INLINE void add_near_backward(const V* kernel, const V* dy, V* dz, int64_t rows) {
  add_near<-1>(kernel, dy + rows - 1, dz + rows - 1, rows);
}

// dkernel[lag] += sum_t dy[t] z[t - lag] for lag < rows, with z[-kZerosBefore .. -1] = 0.
template <typename V>
HYENAREC_INLINE void add_near_kernel_grads(const V* dy, const V* z, V* dkernel, int64_t rows) {
  for (int64_t first = 0; first < rows; first += kBlock) {
    V lags[kBlock];
    for (int i = 0; i < kBlock; ++i) lags[i] = dkernel[first + i];
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
    for (int i = 0; i < kBlock; ++i) dkernel[first + i] = lags[i];
  }
}

// sum_t term(t) for t < count, in four sums that don't wait for each other.
template <typename V, typename Term>
HYENAREC_INLINE V sum_over(int64_t count, const Term& term) {
  V sums[4] = {};
  int64_t t = 0;
  for (; t + 4 <= count; t += 4) {
    for (int i = 0; i < 4; ++i) sums[i] += term(t + i);
  }
  for (; t < count; ++t) sums[0] += term(t);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// out[i] = sum_{j >= i} matrix[i][j] in[j] for the first `rows` rows and `columns` columns of an upper
// triangular matrix [pitch, ...], given by column.
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

// out[j] += step out[j] + sum_{i <= j, i < rows} matrix[i][j] in[i] for j < columns: the transposed product
// of an upper triangular matrix [rows, pitch], added to what is left of `out`.
template <typename V>
HYENAREC_INLINE void add_transposed_upper(
    const LaneOf<V>* matrix, int64_t pitch, int64_t rows, int64_t columns, const V* in, const V& step,
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

// y[j] = weight[j] sum_{k < terms} basis[k][j] local[k] for the events of a chunk. Even polynomials are
// symmetric about its middle and odd ones antisymmetric, so two events share one sum of each.
template <typename V>
HYENAREC_INLINE void evaluate(
    const LegendreTables<LaneOf<V>>& tables, int64_t terms, const V* local, const V* weight, V* y) {
  const int64_t chunk = tables.chunk;
  in_runs(chunk / 2, [&](auto run, int64_t first) HYENAREC_INLINE_LAMBDA {
    V even[run()] = {}, odd[run()] = {};
    const LaneOf<V>* row = tables.basis.data() + first;
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
      y[t] = (even[j] + odd[j]) * weight[t];
      y[mirrored] = (even[j] - odd[j]) * weight[mirrored];
    }
  });
}

// moments[k] = sum_j basis[k][j] weight[j] z[j] for k < terms, the transposed of `evaluate`. `folded` is room
// for a chunk's vectors.
template <typename V>
HYENAREC_INLINE void take_moments(
    const LegendreTables<LaneOf<V>>& tables, int64_t terms, const V* z, const V* weight, V* folded,
    V* moments) {
  const LaneOf<V>* const by_column = tables.basis_by_column.data();
  const int64_t num_coeffs = tables.num_coeffs, chunk = tables.chunk, half = chunk / 2;
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
    const LaneOf<V>* column = by_column + terms - 1;
    moments[terms - 1] = sum_over<V>(
        half, [&](int64_t t) HYENAREC_INLINE_LAMBDA { return column[t * num_coeffs] * sums_of_pairs[t]; });
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

// y[t] = decay_from_start[t] sum_{k < count} basis[k][t] state[k] for t < rows, a multiple of kBlock.
template <typename V>
HYENAREC_INLINE void evaluate_directly(
    const LaneOf<V>* basis, int64_t rows, int64_t count, const V* state, const V* decay_from_start, V* y) {
  for (int64_t first = 0; first < rows; first += kBlock) {
    V sums[kBlock] = {};
    const LaneOf<V>* row = basis + first;
    for (int64_t k = 0; k < count; ++k, row += rows) {
      const V value = state[k];
      for (int t = 0; t < kBlock; ++t) sums[t] += row[t] * value;
    }
    for (int t = 0; t < kBlock; ++t) y[first + t] = sums[t] * decay_from_start[first + t];
  }
}

// dstate[k] += sum_{t < rows} basis[k][t] decay_from_start[t] dy[t] for k < count: its transposed.
template <typename V>
HYENAREC_INLINE void evaluate_directly_backward(
    const LaneOf<V>* basis, int64_t rows, int64_t count, const V* dy, const V* decay_from_start, V* dstate) {
  for (int64_t first = 0; first < rows; first += kBlock) {
    V weighted[kBlock];
    for (int t = 0; t < kBlock; ++t) weighted[t] = dy[first + t] * decay_from_start[first + t];
    const LaneOf<V>* row = basis + first;
    for (int64_t k = 0; k < count; ++k, row += rows) {
      V sums[2] = {row[0] * weighted[0], row[1] * weighted[1]};
      for (int t = 2; t < kBlock; ++t) sums[t % 2] += row[t] * weighted[t];
      dstate[k] += sums[0] + sums[1];
    }
  }
}

template <typename V>
HYENAREC_INLINE void clear(V* values, int64_t first, int64_t end) {
  for (int64_t t = first; t < end; ++t) values[t] = V{};
}

// Rows up to the end of their last block.
inline int64_t padded(int64_t rows) { return (rows + kBlock - 1) / kBlock * kBlock; }

}  // namespace hyenarec::scan
