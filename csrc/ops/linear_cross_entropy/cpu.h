// linear_cross_entropy on the CPU, between its matrix products: one pass over a tile of scores, a row at a
// time in the first-level cache: maximum, exponentials and their sum, gradient. No torch here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "../common/cpu/simd.h"
#include "exponential.h"
#include "rows.h"

namespace hyenarec::cpu::linear_cross_entropy {

constexpr int64_t kBlockRows = 8;  // sums over rows are made by blocks, on any number of threads
constexpr int64_t kSummed = 2048;  // numbers that a lane's single precision adds up without losing digits
constexpr int64_t kMaxLanes = 64 / sizeof(float);

// The candidates in order, to find the ones that equal a row's target.
class Hits {
 public:
  Hits(const int64_t* candidates, int64_t count) : places_(count) {
    std::iota(places_.begin(), places_.end(), 0);
    std::stable_sort(
        places_.begin(), places_.end(), [&](int64_t a, int64_t b) { return candidates[a] < candidates[b]; });
    for (const int64_t place : places_) items_.push_back(candidates[place]);
  }

  // Their places among the candidates.
  std::span<const int64_t> of(int64_t target) const {
    const auto [first, last] = std::equal_range(items_.begin(), items_.end(), target);
    return {places_.data() + (first - items_.begin()), static_cast<size_t>(last - first)};
  }

 private:
  std::vector<int64_t> items_, places_;
};

// One row of a tile. Its target is one of the classes, or outside of them.
template <typename scalar_t, typename sum_t>
struct Row {
  const scalar_t* logits;
  scalar_t* gradient;  // nullptr: not needed
  const sum_t* shift;
  sum_t* shift_sums;  // to which the gradient is added; nullptr: not needed
  sum_t* work;        // of a thread: scores, then exponentials, up to a multiple of kMaxLanes
  int64_t classes;
  int64_t target;                 // -1: outside
  sum_t target_score;             // if it is outside
  std::span<const int64_t> hits;  // classes that are the target which is outside
  sum_t weight;
  sum_t smoothing;
};

template <typename sum_t>
struct RowResult {
  sum_t loss, of_target_score;
};

// Calls visit(j, count) for each vector of `lanes` classes from j on, of which `count` exist, and sums what
// it returns: in double for stretches that single precision can't add up.
template <int lanes, typename V, typename Visit>
HYENAREC_INLINE double sum_over_classes(int64_t classes, const Visit& visit) {
  double total = 0;
  for (int64_t first = 0; first < classes; first += kSummed) {
    const int64_t last = std::min(first + kSummed, classes), last_whole = last - (last - first) % lanes;
    V sum{};
    for (int64_t j = first; j < last_whole; j += lanes)
      sum += visit(j, std::integral_constant<int64_t, lanes>{});
    if (last_whole < last) sum += visit(last_whole, last - last_whole);
    total += simd::sum_of_lanes(sum);
  }
  return total;
}

// Writes the scores to `work`, -inf behind the last one; their maximum and, where it is needed, their sum.
template <typename V, bool smooth, typename scalar_t, typename sum_t>
HYENAREC_INLINE std::pair<sum_t, double> score_row(const Row<scalar_t, sum_t>& row) {
  constexpr int lanes = simd::kLanes<V>;
  constexpr auto nothing = -std::numeric_limits<sum_t>::infinity();
  V highest = V{} + (row.target < 0 ? row.target_score : nothing);
  const double total =
      sum_over_classes<lanes, V>(row.classes, [&](int64_t j, auto count) HYENAREC_INLINE_LAMBDA -> V {
        const V scores =
            simd::load_first<V>(row.logits + j, count) + simd::load_first<V>(row.shift + j, count);
        simd::store(scores, row.work + j);
        for (int64_t i = count; i < lanes; ++i) row.work[j + i] = nothing;
        const V known = simd::load<lanes>(row.work + j);
        highest = known > highest ? known : highest;
        if constexpr (smooth) return scores;
        return V{};
      });
  sum_t maximum = highest[0];
  for (int i = 1; i < lanes; ++i) maximum = std::max(maximum, highest[i]);
  return {maximum, total};
}

// scale exponential - uniform for each class, but for the target; also added to the sums over rows.
template <typename V, typename scalar_t, typename sum_t>
HYENAREC_INLINE void write_gradient(
    const Row<scalar_t, sum_t>& row, sum_t scale, sum_t uniform, sum_t certain, sum_t of_target_score) {
  constexpr int lanes = simd::kLanes<V>;
  sum_over_classes<lanes, V>(row.classes, [&](int64_t j, auto count) HYENAREC_INLINE_LAMBDA -> V {
    const V gradient = simd::load<lanes>(row.work + j) * scale - uniform;
    simd::store_first(gradient, row.gradient + j, count);
    if (row.shift_sums != nullptr) {
      const V sums = simd::load_first<V>(row.shift_sums + j, count) + gradient;
      simd::store_first(sums, row.shift_sums + j, count);
    }
    return V{};
  });
  if (row.target >= 0) {
    row.gradient[row.target] = static_cast<scalar_t>(of_target_score);
    if (row.shift_sums != nullptr) row.shift_sums[row.target] -= certain;
  }
  for (const int64_t hit : row.hits) {
    row.gradient[hit] = static_cast<scalar_t>(0);
    if (row.shift_sums != nullptr) row.shift_sums[hit] += uniform;
  }
}

template <typename V, bool smooth, typename scalar_t, typename sum_t>
HYENAREC_INLINE RowResult<sum_t> softmax_row(const Row<scalar_t, sum_t>& row) {
  constexpr int lanes = simd::kLanes<V>;
  const bool outside = row.target < 0;
  auto [maximum, score_sum] = score_row<V, smooth>(row);
  const sum_t target_score = outside ? row.target_score : row.work[row.target];
  double classes = static_cast<double>(row.classes);
  if (outside) {
    for (const int64_t hit : row.hits) {
      score_sum -= row.work[hit];
      row.work[hit] = -std::numeric_limits<sum_t>::infinity();
    }
    classes += 1 - static_cast<double>(row.hits.size());
    score_sum += target_score;
  }

  double exp_sum = sum_over_classes<lanes, V>(row.classes, [&](int64_t j, auto) HYENAREC_INLINE_LAMBDA -> V {
    const V exponentials = simd::exponential_of_negative(simd::load<lanes>(row.work + j) - maximum);
    simd::store(exponentials, row.work + j);
    return exponentials;
  });
  const sum_t of_target = outside ? std::exp(target_score - maximum) : row.work[row.target];
  if (outside) exp_sum += of_target;

  const double smoothing = row.smoothing;
  double loss = std::log(exp_sum) + (maximum - (1 - smoothing) * target_score);
  if (smooth) loss -= smoothing * score_sum / classes;
  const auto scale = static_cast<sum_t>(row.weight / exp_sum);
  const auto uniform = static_cast<sum_t>(row.weight * smoothing / classes);
  const auto certain = static_cast<sum_t>(row.weight * (1 - smoothing));
  const sum_t of_target_score = of_target * scale - uniform - certain;
  if (row.gradient != nullptr) write_gradient<V>(row, scale, uniform, certain, of_target_score);
  return {static_cast<sum_t>(loss), of_target_score};
}

// Row i of a tile, with the hits among its candidates. `row` has what all rows of a block share.
template <typename V, bool smooth, typename scalar_t, typename sum_t>
HYENAREC_INLINE RowResult<sum_t> softmax_row_of_tile(
    const CrossEntropyRows<scalar_t, scalar_t>& tile, const Hits& hits, int64_t i,
    Row<scalar_t, sum_t>& row) {
  row.gradient = tile.gradient ? tile.gradient + i * tile.classes : nullptr;
  const int64_t target = tile.target[i];
  if (target < 0) {
    if (row.gradient) std::fill_n(row.gradient, tile.classes, static_cast<scalar_t>(0));
    return {};
  }
  row.logits = tile.logits + i * tile.classes;
  row.weight = tile.row_weight ? tile.row_weight[i] : sum_t(1);
  row.target = target;
  if (tile.target_score) {
    row.target = -1;
    row.target_score = tile.target_score[i];
    row.hits = hits.of(target);
  }
  return softmax_row<V, smooth>(row);
}

// The losses and gradients of the blocks [first_block, last_block) of kBlockRows rows, and of_shift [blocks,
// C], the sums of the gradient over a block's rows, unless it is nullptr. `smooth`: with smoothing > 0.
template <bool smooth, typename scalar_t, typename sum_t>
void softmax(
    const CrossEntropyRows<scalar_t, scalar_t>& tile, const Hits& hits, sum_t* of_shift, int64_t first_block,
    int64_t last_block) {
  const std::unique_ptr<sum_t[]> work(new sum_t[(tile.classes + kMaxLanes - 1) / kMaxLanes * kMaxLanes]);
  simd::run_with_widest_vectors([&](auto bytes) HYENAREC_INLINE_LAMBDA {
    using V = simd::Vector<sum_t, bytes / sizeof(sum_t)>;
    Row<scalar_t, sum_t> row{};
    row.shift = tile.shift;
    row.work = work.get();
    row.classes = tile.classes;
    row.smoothing = tile.smoothing;
    for (int64_t block = first_block; block < last_block; ++block) {
      if (of_shift) {
        row.shift_sums = of_shift + block * tile.classes;
        std::fill_n(row.shift_sums, tile.classes, sum_t(0));
      }
      const int64_t last = std::min((block + 1) * kBlockRows, tile.rows);
      for (int64_t i = block * kBlockRows; i < last; ++i) {
        const RowResult<sum_t> result = softmax_row_of_tile<V, smooth>(tile, hits, i, row);
        tile.losses[i] = result.loss;
        if (tile.of_target) tile.of_target[i] = result.of_target_score;
      }
    }
  });
}

// sums [C] += those of the blocks [blocks, C], for the classes [first, last).
template <typename sum_t>
void add_block_sums(
    const sum_t* block_sums, int64_t blocks, int64_t classes, int64_t first, int64_t last, sum_t* sums) {
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t j = first; j < last; ++j) sums[j] += block_sums[block * classes + j];
  }
}

// out[index[i]] += factor[i] rows[i] for those index[i] that are in [first, last); without factors, 1.
template <typename scalar_t, typename sum_t>
void add_rows(
    const int64_t* index, const scalar_t* rows, const sum_t* factors, int64_t count, int64_t channels,
    int64_t first, int64_t last, sum_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    if (index[i] < first || index[i] >= last) continue;
    const sum_t times = factors ? factors[i] : 1;
    const scalar_t* __restrict row = rows + i * channels;
    sum_t* __restrict sums = out + index[i] * channels;
    for (int64_t d = 0; d < channels; ++d) sums[d] += times * static_cast<sum_t>(row[d]);
  }
}

}  // namespace hyenarec::cpu::linear_cross_entropy
