// short_conv on the CPU: the filter row by row; the taps' gradients for one vector of channels after another,
// which runs along a piece of a sequence with its sums in registers. The input gradient is the same filter
// run backwards in time. No torch here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../common/cpu/rows.h"
#include "../common/cpu/simd.h"
#include "max_width.h"

namespace hyenarec::cpu::short_conv {

constexpr int64_t kBlockElements = 32768;  // of the rows that a thread takes together: they stay in its cache
constexpr int64_t kMaxBlockRows = 1024;    // as many as single precision adds up without losing digits
// Events that one vector of channels runs along before the next one does: few enough for the cache.
constexpr int64_t kPieceRows = 64;

inline int64_t rows_per_block(int64_t channels) {
  return std::clamp<int64_t>(kBlockElements / std::max<int64_t>(channels, 1), 16, kMaxBlockRows);
}

// Along time: taps [width, channels] and a bias [channels].
template <typename param_t>
struct Filter {
  const param_t *taps, *bias;
  int64_t width, channels;
};

// Calls visit(sequence, first, last) for each stretch of events [first, last) of a sequence among these rows.
template <typename Visit>
HYENAREC_INLINE void for_each_stretch(
    const Sequences& sequences, int64_t first_row, int64_t last_row, const Visit& visit) {
  for (int64_t row = first_row, s = sequences.holding(first_row); row < last_row; ++s) {
    const int64_t start = sequences.start(s);
    const int64_t end = std::min(start + sequences.size(s), last_row);
    if (row < end) visit(s, row - start, end - start);
    row = std::max(row, end);
  }
}

// Calls run(taps) with an integral constant, 1 <= taps <= most.
template <int most = kShortConvMaxWidth, typename Run>
HYENAREC_INLINE void with_constant(int64_t taps, const Run& run) {
  if constexpr (most > 1) {
    if (taps < most) return with_constant<most - 1>(taps, run);
  }
  run(std::integral_constant<int, most>{});
}

// Calls run(taps, first, last) for pieces of the events [first, last), with the number of taps that they
// reach: the first width - 1 events of a sequence reach fewer.
template <typename Run>
HYENAREC_INLINE void by_reach(int64_t width, int64_t first, int64_t last, const Run& run) {
  while (first < last) {
    const int64_t taps = std::min(first + 1, width);
    const int64_t end = taps < width ? first + 1 : std::min(first + kPieceRows, last);
    with_constant(taps, [&](auto constant) HYENAREC_INLINE_LAMBDA { run(constant, first, end); });
    first = end;
  }
}

// The events that the taps meet, newest first: value[w] = u(t - w).
template <int taps, typename V>
struct Window {
  V value[taps];

  // Before event t, which is to be pushed next.
  template <typename scalar_t>
  HYENAREC_INLINE Window(const Rows<const scalar_t>& u, int64_t t, int64_t d) {
#pragma GCC unroll 8
    for (int w = 1; w < taps; ++w) value[w - 1] = simd::load<simd::kLanes<V>>(u.row(t - w) + d);
  }
  HYENAREC_INLINE void push(const V& next) {
#pragma GCC unroll 8
    for (int w = taps - 1; w > 0; --w) value[w] = value[w - 1];
    value[0] = next;
  }
};

// out(t) = bias + sum_{w < width} taps[w] u(t - w) for the events t in [first, last): row by row, as they lie
// in memory. Vectors are `bytes` long.
template <int bytes, typename scalar_t, typename param_t>
HYENAREC_INLINE void filter_stretch(
    const Filter<param_t>& filter, const Rows<const scalar_t>& u, const Rows<scalar_t>& out, int64_t first,
    int64_t last) {
  const auto filter_row = [&](int64_t t, auto reach) HYENAREC_INLINE_LAMBDA {
    constexpr int taps = reach;
    simd::for_each_vector<bytes / sizeof(param_t)>(
        0, filter.channels, [&](int64_t d, auto lanes) HYENAREC_INLINE_LAMBDA {
          auto sum = simd::load<lanes>(filter.bias + d);
#pragma GCC unroll 8
          for (int w = 0; w < taps; ++w)
            sum += simd::load<lanes>(filter.taps + w * filter.channels + d) *
                   simd::load<lanes>(u.row(t - w) + d);
          simd::store(sum, out.row(t) + d);
        });
  };
  by_reach(filter.width, first, last, [&](auto reach, int64_t from, int64_t to) HYENAREC_INLINE_LAMBDA {
    for (int64_t t = from; t < to; ++t) filter_row(t, reach);
  });
}

// sums[w] += grad(t) u(t - w) for w < taps, and sums[width] += grad(t), for the events t in [first, last) and
// the channels from d on that a vector V holds.
template <int taps, typename V, typename scalar_t, typename param_t>
HYENAREC_INLINE void add_channels(
    const Filter<param_t>& filter, const Rows<const scalar_t>& grad, const Rows<const scalar_t>& u,
    param_t* sums, int64_t first, int64_t last, int64_t d) {
  constexpr int lanes = simd::kLanes<V>;
  param_t* bias_sums = sums + filter.width * filter.channels + d;
  V of_taps[taps], of_bias = simd::load<lanes>(bias_sums);
#pragma GCC unroll 8
  for (int w = 0; w < taps; ++w) of_taps[w] = simd::load<lanes>(sums + w * filter.channels + d);
  Window<taps, V> window(u, first, d);
  for (int64_t t = first; t < last; ++t) {
    window.push(simd::load<lanes>(u.row(t) + d));
    const V g = simd::load<lanes>(grad.row(t) + d);
#pragma GCC unroll 8
    for (int w = 0; w < taps; ++w) of_taps[w] += g * window.value[w];
    of_bias += g;
  }
#pragma GCC unroll 8
  for (int w = 0; w < taps; ++w) simd::store(of_taps[w], sums + w * filter.channels + d);
  simd::store(of_bias, bias_sums);
}

// The same for all channels. Vectors are `bytes` long.
template <int bytes, typename scalar_t, typename param_t>
HYENAREC_INLINE void add_stretch(
    const Filter<param_t>& filter, const Rows<const scalar_t>& grad, const Rows<const scalar_t>& u,
    param_t* sums, int64_t first, int64_t last) {
  by_reach(filter.width, first, last, [&](auto taps, int64_t from, int64_t to) HYENAREC_INLINE_LAMBDA {
    simd::for_each_vector<bytes / sizeof(param_t)>(
        0, filter.channels, [&](int64_t d, auto lanes) HYENAREC_INLINE_LAMBDA {
          add_channels<taps, simd::Vector<param_t, lanes>>(filter, grad, u, sums, from, to, d);
        });
  });
}

// The output of the rows [first_row, last_row).
template <typename scalar_t, typename param_t>
void forward(
    const Sequences& sequences, const Filter<param_t>& filter, const Rows<const scalar_t>& u,
    const Rows<scalar_t>& out, int64_t first_row, int64_t last_row) {
  simd::run_with_widest_vectors([&](auto bytes) HYENAREC_INLINE_LAMBDA {
    for_each_stretch(
        sequences, first_row, last_row, [&](int64_t s, int64_t first, int64_t last) HYENAREC_INLINE_LAMBDA {
          filter_stretch<bytes>(filter, u.of(sequences, s), out.of(sequences, s), first, last);
        });
  });
}

// What the rows [first_row, last_row) give: the gradient of u at these rows, unless u_grad is absent, and
// their part of the gradients of taps and bias, added to sums [width + 1, channels], unless that is nullptr.
// The filter's bias is zero.
template <typename scalar_t, typename param_t>
void backward(
    const Sequences& sequences, const Filter<param_t>& filter, const Rows<const scalar_t>& grad,
    const Rows<const scalar_t>& u, const Rows<scalar_t>& u_grad, param_t* sums, int64_t first_row,
    int64_t last_row) {
  simd::run_with_widest_vectors([&](auto bytes) HYENAREC_INLINE_LAMBDA {
    for_each_stretch(
        sequences, first_row, last_row, [&](int64_t s, int64_t first, int64_t last) HYENAREC_INLINE_LAMBDA {
          const int64_t size = sequences.size(s);
          const auto g = grad.of(sequences, s);
          if (u_grad.data) {
            filter_stretch<bytes>(
                filter, g.backwards(size), u_grad.of(sequences, s).backwards(size), size - last,
                size - first);
          }
          if (sums) add_stretch<bytes>(filter, g, u.of(sequences, s), sums, first, last);
        });
  });
}

}  // namespace hyenarec::cpu::short_conv
