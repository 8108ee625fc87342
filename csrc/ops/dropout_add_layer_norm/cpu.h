// dropout_add_layer_norm on the CPU: a row at a time, which stays in the first-level cache for its second
// sweep. What must move: forward four activations (branch, residual -> sum, normed), backward five (two
// gradients, sum -> two gradients). No torch here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../common/cpu/simd.h"
#include "call.h"
#include "random_levels.h"

namespace hyenarec::cpu::dropout_add_layer_norm {

constexpr int64_t kBlockElements = 8192;  // of the rows that a thread takes together
constexpr int64_t kMaxBlockRows = 128;    // as many as single precision adds up without losing digits

inline int64_t rows_per_block(int64_t channels) {
  return std::clamp<int64_t>(kBlockElements / channels, 1, kMaxBlockRows);
}

// Which elements of a block of rows dropout leaves, and what it does to them.
template <typename V>
class Dropout {
 public:
  using scalar_t = simd::LaneOf<V>;

  HYENAREC_INLINE Dropout(const NormDropout<scalar_t>& settings, int64_t channels)
      : dropped_(settings.dropped),
        scale_(settings.scale),
        channels_(channels),
        random_(settings.seed ? static_cast<uint64_t>(*settings.seed) : 0) {}

  HYENAREC_INLINE bool draws() const { return dropped_ > 0; }

  HYENAREC_INLINE void begin_row(int64_t row) {
    if (draws()) of_row_ = random_.at(row * channels_, channels_);
  }
  // Of the row's channels from d on.
  HYENAREC_INLINE V operator()(const V& values, int64_t d) const {
    if (!draws()) return values;
    constexpr int lanes = simd::kLanes<V>;
    using Levels = simd::Vector<std::conditional_t<sizeof(scalar_t) == 8, uint64_t, uint32_t>, lanes>;
    const auto levels =
        __builtin_convertvector(simd::load_lanes<simd::Vector<uint16_t, lanes>>(of_row_ + d), Levels);
    return levels >= dropped_ ? values * scale_ : V{};
  }

 private:
  const uint32_t dropped_;
  const scalar_t scale_;
  const int64_t channels_;
  simd::RandomLevels random_;
  const uint16_t* of_row_ = nullptr;
};

// Begins to fetch the row some kilobytes ahead. Where random bits are drawn in between, the processor would
// not look so far by itself: 1.2 times faster, forward and backward.
template <typename scalar_t>
HYENAREC_INLINE void fetch_ahead_of(const NormRows<scalar_t>& rows, int64_t row, int64_t channels) {
  if (!rows.data) return;
  constexpr int64_t kAhead = 2048, kLine = 64;
  const auto size = static_cast<int64_t>(channels * sizeof(scalar_t));
  const auto* ahead = reinterpret_cast<const char*>(rows.row(row + kAhead / size + 1));
  for (int64_t byte = 0; byte < size; byte += kLine) __builtin_prefetch(ahead + byte);
}

// Calls visit(d, count) for each vector of `lanes` channels from d on, of which `count` exist.
template <int lanes, typename Visit>
HYENAREC_INLINE void over_channels(int64_t channels, const Visit& visit) {
  const int64_t last_whole = channels - channels % lanes;
  for (int64_t d = 0; d < last_whole; d += lanes) visit(d, std::integral_constant<int64_t, lanes>{});
  if (last_whole < channels) visit(last_whole, channels - last_whole);
}

// The vector with zeros behind its first `count` lanes.
template <typename V, typename Count>
HYENAREC_INLINE V first_lanes(const V& vector, Count count) {
  V lanes = vector;
  for (int64_t i = count; i < simd::kLanes<V>; ++i) lanes[i] = 0;
  return lanes;
}

// Calls visit(dropout, row, block) for the rows of the blocks [first_block, last_block), with the Dropout of
// a block in the widest vectors.
template <typename Call, typename Visit>
void over_blocks(const Call& call, int64_t first_block, int64_t last_block, const Visit& visit) {
  const int64_t block_rows = rows_per_block(call.channels);
  simd::run_with_widest_vectors([&](auto bytes) HYENAREC_INLINE_LAMBDA {
    using V = simd::Vector<typename Call::T, bytes / sizeof(typename Call::T)>;
    for (int64_t block = first_block; block < last_block; ++block) {
      Dropout<V> dropout(call.dropout, call.channels);
      const int64_t last = std::min((block + 1) * block_rows, call.rows);
      for (int64_t row = block * block_rows; row < last; ++row) visit(dropout, row, block);
    }
  });
}

template <typename V, typename branch_t, typename sum_t>
HYENAREC_INLINE void forward_row(const NormForward<branch_t, sum_t>& call, Dropout<V>& dropout, int64_t row) {
  using compute = simd::LaneOf<V>;
  constexpr int lanes = simd::kLanes<V>;
  const int64_t channels = call.channels;
  const branch_t* branch = call.branch.row(row);
  const sum_t* residual = call.residual.row(row);
  sum_t *sum = call.sum + row * channels, *normed = call.normed + row * channels;
  const auto size = static_cast<compute>(channels);

  if (dropout.draws()) {
    fetch_ahead_of(call.branch, row, channels);
    fetch_ahead_of(call.residual, row, channels);
  }
  dropout.begin_row(row);
  V total{};
  over_channels<lanes>(channels, [&](int64_t d, auto count) HYENAREC_INLINE_LAMBDA {
    V value = dropout(simd::load_first<V>(branch + d, count), d);
    if (residual) value += simd::load_first<V>(residual + d, count);
    simd::store_first(value, sum + d, count);
    // Of 16-bit sums as they were rounded.
    total += std::is_same_v<sum_t, compute> ? value : simd::load_first<V>(sum + d, count);
  });
  const compute mean = simd::sum_of_lanes(total) / size;

  V squares{};
  over_channels<lanes>(channels, [&](int64_t d, auto count) HYENAREC_INLINE_LAMBDA {
    const V centred = first_lanes(simd::load_first<V>(sum + d, count) - mean, count);
    squares += centred * centred;
  });
  const compute variance = simd::sum_of_lanes(squares) / size;
  const compute rstd = 1 / std::sqrt(variance + call.eps);

  over_channels<lanes>(channels, [&](int64_t d, auto count) HYENAREC_INLINE_LAMBDA {
    const V centred = simd::load_first<V>(sum + d, count) - mean;
    const V weight = simd::load_first<V>(call.weight + d, count);
    simd::store_first(centred * rstd * weight + simd::load_first<V>(call.bias + d, count), normed + d, count);
  });
  call.mean[row] = mean;
  call.rstd[row] = rstd;
}

// The blocks [first_block, last_block) of rows_per_block rows.
template <typename branch_t, typename sum_t>
void forward(const NormForward<branch_t, sum_t>& call, int64_t first_block, int64_t last_block) {
  over_blocks(call, first_block, last_block, [&](auto& dropout, int64_t row, int64_t) HYENAREC_INLINE_LAMBDA {
    forward_row(call, dropout, row);
  });
}

// A row's means of the gradient by the normalised row, and of its product with that row.
template <typename compute>
struct GradientMeans {
  compute grad, product;
};

// These means; what the row gives for the gradients of weight and bias is added to `partial` [2, channels],
// unless that is nullptr.
template <typename V, typename branch_t, typename sum_t, typename Normalized>
HYENAREC_INLINE GradientMeans<simd::LaneOf<V>> gradient_means(
    const NormBackward<branch_t, sum_t>& call, const sum_t* grad_normed, const Normalized& normalized,
    simd::LaneOf<V>* partial) {
  V grads{}, products{};
  over_channels<simd::kLanes<V>>(call.channels, [&](int64_t d, auto count) HYENAREC_INLINE_LAMBDA {
    const V grad = simd::load_first<V>(grad_normed + d, count);
    const V product = grad * normalized(d, count);
    const V weight = simd::load_first<V>(call.weight + d, count);
    grads += grad * weight;
    products += product * weight;
    if (!partial) return;
    auto *of_weight = partial + d, *of_bias = of_weight + call.channels;
    simd::store_first(simd::load_first<V>(of_weight, count) + product, of_weight, count);
    simd::store_first(simd::load_first<V>(of_bias, count) + grad, of_bias, count);
  });
  const auto size = static_cast<simd::LaneOf<V>>(call.channels);
  return {simd::sum_of_lanes(grads) / size, simd::sum_of_lanes(products) / size};
}

template <typename V, typename branch_t, typename sum_t>
HYENAREC_INLINE void backward_row(
    const NormBackward<branch_t, sum_t>& call, Dropout<V>& dropout, int64_t row, simd::LaneOf<V>* partial) {
  using compute = simd::LaneOf<V>;
  constexpr int lanes = simd::kLanes<V>;
  const int64_t channels = call.channels;
  const sum_t *grad_normed = call.grad_normed.row(row), *grad_sum = call.grad_sum.row(row);
  const sum_t* sum = call.sum.row(row);
  branch_t* grad_branch = call.grad_branch ? call.grad_branch + row * channels : nullptr;
  sum_t* grad_residual = call.grad_residual ? call.grad_residual + row * channels : nullptr;
  const compute mean = call.mean[row], rstd = call.rstd[row];
  const auto normalized = [&](int64_t d, auto count) HYENAREC_INLINE_LAMBDA -> V {
    return (simd::load_first<V>(sum + d, count) - mean) * rstd;
  };

  if (dropout.draws()) {
    fetch_ahead_of(call.grad_normed, row, channels);
    fetch_ahead_of(call.grad_sum, row, channels);
    fetch_ahead_of(call.sum, row, channels);
  }
  GradientMeans<compute> means{};
  if (grad_normed) means = gradient_means<V>(call, grad_normed, normalized, partial);
  if (!grad_branch && !grad_residual) return;

  if (grad_branch) dropout.begin_row(row);
  over_channels<lanes>(channels, [&](int64_t d, auto count) HYENAREC_INLINE_LAMBDA {
    V grad{};
    if (grad_normed) {
      const V weighted =
          simd::load_first<V>(grad_normed + d, count) * simd::load_first<V>(call.weight + d, count);
      grad = simd::rounded((weighted - means.grad - normalized(d, count) * means.product) * rstd);
    }
    if (grad_sum) grad += simd::load_first<V>(grad_sum + d, count);
    if (grad_residual) simd::store_first(grad, grad_residual + d, count);
    if (grad_branch) simd::store_first(dropout(grad, d), grad_branch + d, count);
  });
}

// The gradients of the same blocks.
template <typename branch_t, typename sum_t>
void backward(const NormBackward<branch_t, sum_t>& call, int64_t first_block, int64_t last_block) {
  over_blocks(
      call, first_block, last_block, [&](auto& dropout, int64_t row, int64_t block) HYENAREC_INLINE_LAMBDA {
        backward_row(call, dropout, row, call.partial ? call.partial + block * 2 * call.channels : nullptr);
      });
}

}  // namespace hyenarec::cpu::dropout_add_layer_norm
