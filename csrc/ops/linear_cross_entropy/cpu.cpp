// linear_cross_entropy on the CPU: matrix products by the BLAS that torch brings, and between them one pass over a
// tile of scores, a row at a time in the first-level cache: maximum, exponentials and their sum, gradient.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include "../common/argument_checks.h"
#include "../common/cpu/simd.h"
#include "exponential.h"
#include "linear_cross_entropy.h"
#include "tiles.h"

namespace hyenarec {
namespace {

constexpr int64_t kTileScores = 1 << 20;  // 4 MB of float: they stay in the last-level cache
constexpr int64_t kMostTileRows = 1024;
constexpr int64_t kBlockRows = 8;  // sums over rows are made by blocks, on any number of threads
constexpr int64_t kSummed = 2048;  // numbers that a lane's single precision adds up without losing digits
constexpr int64_t kMostLanes = 64 / sizeof(float);

// One row of a tile. Its target is one of the classes, or outside of them.
template <typename scalar_t, typename sum_t>
struct Row {
  const scalar_t* logits;
  scalar_t* gradient;  // nullptr: not needed
  const sum_t* shift;
  sum_t* shift_sums;  // to which the gradient is added; nullptr: not needed
  sum_t* work;        // of a thread: scores, then exponentials, up to a multiple of kMostLanes
  int64_t classes;
  int64_t target;                     // -1: outside
  sum_t target_score;                 // if it is outside
  const int64_t *hits, *end_of_hits;  // classes that are the target which is outside
  sum_t weight;
  sum_t smoothing;
};

template <typename sum_t>
struct RowResult {
  sum_t loss, of_target_score;
};

// Calls visit(j, count) for each vector of `lanes` classes from j on, of which `count` exist, and sums what it
// returns: in double for stretches that single precision can't add up.
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

template <typename V, bool smooth, typename scalar_t, typename sum_t>
HYENAREC_INLINE RowResult<sum_t> softmax_row(const Row<scalar_t, sum_t>& row) {
  constexpr int lanes = simd::kLanes<V>;
  const bool outside = row.target < 0;
  auto [maximum, score_sum] = score_row<V, smooth>(row);
  const sum_t target_score = outside ? row.target_score : row.work[row.target];
  double classes = static_cast<double>(row.classes);
  if (outside) {
    for (const int64_t* hit = row.hits; hit < row.end_of_hits; ++hit) {
      score_sum -= row.work[*hit];
      row.work[*hit] = -std::numeric_limits<sum_t>::infinity();
    }
    classes += 1 - static_cast<double>(row.end_of_hits - row.hits);
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
  if (row.gradient == nullptr) return {static_cast<sum_t>(loss), of_target_score};

  sum_over_classes<lanes, V>(row.classes, [&](int64_t j, auto count) HYENAREC_INLINE_LAMBDA -> V {
    const V gradient = simd::load<lanes>(row.work + j) * scale - uniform;
    simd::store_first(gradient, row.gradient + j, count);
    if (row.shift_sums != nullptr) {
      const V sums = simd::load_first<V>(row.shift_sums + j, count) + gradient;
      simd::store_first(sums, row.shift_sums + j, count);
    }
    return V{};
  });
  if (!outside) {
    row.gradient[row.target] = static_cast<scalar_t>(of_target_score);
    if (row.shift_sums != nullptr) row.shift_sums[row.target] -= certain;
  }
  for (const int64_t* hit = row.hits; hit < row.end_of_hits; ++hit) {
    row.gradient[*hit] = static_cast<scalar_t>(0);
    if (row.shift_sums != nullptr) row.shift_sums[*hit] += uniform;
  }
  return {static_cast<sum_t>(loss), of_target_score};
}

// The candidates in order, to find the ones that equal a row's target.
class Hits {
 public:
  explicit Hits(const std::optional<at::Tensor>& candidates) {
    if (!candidates) return;
    const auto values = candidates->contiguous();
    const auto* items = values.const_data_ptr<int64_t>();
    places_.resize(values.size(0));
    std::iota(places_.begin(), places_.end(), 0);
    std::stable_sort(
        places_.begin(), places_.end(), [&](int64_t a, int64_t b) { return items[a] < items[b]; });
    for (const int64_t place : places_) items_.push_back(items[place]);
  }

  // [begin, end) of their places among the candidates.
  std::pair<const int64_t*, const int64_t*> of(int64_t target) const {
    const auto [first, last] = std::equal_range(items_.begin(), items_.end(), target);
    return {places_.data() + (first - items_.begin()), places_.data() + (last - items_.begin())};
  }

 private:
  std::vector<int64_t> items_, places_;
};

// Values are looked at on the CPU only.
void check_items(const char* name, const at::Tensor& items, int64_t lowest, int64_t count) {
  const auto contiguous = items.contiguous();
  const auto* values = contiguous.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < items.size(0); ++i) {
    TORCH_CHECK(
        values[i] >= lowest && values[i] < count, "linear_cross_entropy: ", name,
        " must be in [0, V) with V = ", count, lowest < 0 ? ", or -1 for none" : "", ", got ", values[i],
        " at ", i);
  }
}

void check_values(const detail::CrossEntropyArguments& arguments) {
  detail::check_cpu_activation_type({"linear_cross_entropy", "hidden", arguments.hidden});
  check_items("target", arguments.target, -1, arguments.weight.size(0));
  if (arguments.candidates) check_items("candidates", *arguments.candidates, 0, arguments.weight.size(0));
}

// What cross_entropy_in_tiles asks of a backend.
class CpuTiles {
 public:
  explicit CpuTiles(const detail::CrossEntropyArguments& arguments)
      : hits_(arguments.candidates), smoothing_(arguments.label_smoothing) {
    check_values(arguments);
  }

  static int64_t rows_of_tile(int64_t classes) {
    return detail::rows_of_tile(kTileScores, classes, kMostTileRows);
  }
  static at::ScalarType logits_type(at::ScalarType type) { return type; }

  static void multiply(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) { at::mm_out(out, a, b); }

  // torch has no product of 16-bit matrices that is added to a float one.
  void add_product(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
    if (a.scalar_type() == out.scalar_type()) {
      out.addmm_(a, b);
      return;
    }
    if (!product_.defined()) product_ = at::empty(out.sizes(), a.options());
    out.add_(at::mm_out(product_, a, b));
  }

  void softmax(detail::CrossEntropyTile& tile) const {
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, tile.logits.scalar_type(), "linear_cross_entropy", [&] {
      using sum_t = at::opmath_type<scalar_t>;
      smoothing_ > 0 ? rows<scalar_t, sum_t, true>(tile) : rows<scalar_t, sum_t, false>(tile);
    });
  }

  static void add_rows(
      at::Tensor& out,
      const at::Tensor& index,
      const at::Tensor& rows,
      const std::optional<at::Tensor>& factor) {
    const auto items = index.contiguous(), from = rows.contiguous();
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, from.scalar_type(), "linear_cross_entropy", [&] {
      using sum_t = at::opmath_type<scalar_t>;
      const int64_t channels = out.size(1);
      const auto* item = items.const_data_ptr<int64_t>();
      const auto* from_data = from.const_data_ptr<scalar_t>();
      const auto* factors = factor ? factor->const_data_ptr<sum_t>() : nullptr;
      auto* out_data = out.mutable_data_ptr<sum_t>();
      // Each thread looks at all rows and adds up its own part of the items.
      const int64_t part = at::divup(out.size(0), at::get_num_threads());
      at::parallel_for(0, out.size(0), part, [&](int64_t first, int64_t last) {
        for (int64_t i = 0; i < items.size(0); ++i) {
          if (item[i] < first || item[i] >= last) continue;
          const sum_t times = factors ? factors[i] : 1;
          const scalar_t* __restrict row = from_data + i * channels;
          sum_t* __restrict sums = out_data + item[i] * channels;
          for (int64_t d = 0; d < channels; ++d) sums[d] += times * static_cast<sum_t>(row[d]);
        }
      });
    });
  }

 private:
  template <typename scalar_t, typename sum_t, bool smooth>
  void rows(detail::CrossEntropyTile& tile) const {
    const int64_t count = tile.logits.size(0), classes = tile.logits.size(1);
    const int64_t blocks = at::divup(count, kBlockRows);
    const bool outside = tile.target_score.defined();
    const auto block_sums = at::empty({tile.of_shift.defined() ? blocks : 0, classes}, tile.losses.options());
    const auto* logits = tile.logits.const_data_ptr<scalar_t>();
    auto* gradient = tile.needs_gradient ? tile.gradient.mutable_data_ptr<scalar_t>() : nullptr;
    const auto* targets = tile.target.const_data_ptr<int64_t>();
    const auto* target_scores = outside ? tile.target_score.const_data_ptr<sum_t>() : nullptr;
    const auto* weights = tile.row_weight.defined() ? tile.row_weight.const_data_ptr<sum_t>() : nullptr;
    auto* losses = tile.losses.mutable_data_ptr<sum_t>();
    auto* of_target = tile.of_target.defined() ? tile.of_target.mutable_data_ptr<sum_t>() : nullptr;
    auto* shift_sums = tile.of_shift.defined() ? block_sums.mutable_data_ptr<sum_t>() : nullptr;

    at::parallel_for(0, blocks, 1, [&](int64_t first_block, int64_t last_block) {
      const int64_t padded = at::divup(classes, kMostLanes) * kMostLanes;
      const std::unique_ptr<sum_t[]> work(new sum_t[padded]);
      Row<scalar_t, sum_t> row{};
      row.shift = tile.shift.const_data_ptr<sum_t>();
      row.work = work.get();
      row.classes = classes;
      row.smoothing = static_cast<sum_t>(smoothing_);
      for (int64_t block = first_block; block < last_block; ++block) {
        if (shift_sums) {
          row.shift_sums = shift_sums + block * classes;
          std::fill_n(row.shift_sums, classes, sum_t(0));
        }
        for (int64_t i = block * kBlockRows; i < std::min((block + 1) * kBlockRows, count); ++i) {
          row.gradient = gradient ? gradient + i * classes : nullptr;
          RowResult<sum_t> result{};
          if (targets[i] < 0) {
            if (gradient) std::fill_n(row.gradient, classes, scalar_t(0));
          } else {
            row.logits = logits + i * classes;
            row.weight = weights ? weights[i] : sum_t(1);
            row.target = outside ? -1 : targets[i];
            if (outside) {
              row.target_score = target_scores[i];
              std::tie(row.hits, row.end_of_hits) = hits_.of(targets[i]);
            }
            simd::run_with_widest_vectors([&](auto bytes) HYENAREC_INLINE_LAMBDA {
              result = softmax_row<simd::Vector<sum_t, bytes() / sizeof(sum_t)>, smooth>(row);
            });
          }
          losses[i] = result.loss;
          if (of_target) of_target[i] = result.of_target_score;
        }
      }
    });
    if (shift_sums) add_block_sums(shift_sums, blocks, classes, tile.of_shift.mutable_data_ptr<sum_t>());
  }

  template <typename sum_t>
  static void add_block_sums(const sum_t* block_sums, int64_t blocks, int64_t classes, sum_t* sums) {
    at::parallel_for(0, classes, kSummed, [&](int64_t first, int64_t last) {
      for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t j = first; j < last; ++j) sums[j] += block_sums[block * classes + j];
      }
    });
  }

  const Hits hits_;
  const double smoothing_;
  at::Tensor product_;
};

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  using hyenarec::CpuTiles;
  m.impl("linear_cross_entropy_with_gradients", hyenarec::detail::cross_entropy_with_gradients<CpuTiles>);
  m.impl("linear_cross_entropy_backward", hyenarec::detail::cross_entropy_backward<CpuTiles>);
}
