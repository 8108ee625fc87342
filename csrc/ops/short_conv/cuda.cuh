// Device code of short_conv: a depthwise causal FIR filter of up to 8 taps over rows of channels.
//
// Padded [B, L, D] and packed [total, D] are the same thing here: rows of D channels, cut into sequences.
// A thread holds kVector neighbouring channels and slides along a run of consecutive rows with the last taps
// in registers, so each row is loaded once (and up to width - 1 rows once more, as the run's halo, mostly
// from L2). A warp's lanes lie along channels: 16-byte loads, coalesced.
//
// Bytes that must move: forward 2 D a row (read u, write out), backward 3 D a row (read grad and u, write
// grad_u).
#pragma once

#include "../common/cuda/row_vectors.cuh"

namespace hyenarec {

constexpr int kShortConvThreads = 128;
// Rows a thread keeps in flight: loads that don't wait for each other.
constexpr int kShortConvAhead = 4;
// Row groups that sums over rows are split into, at most: each leaves its share, which torch adds up.
constexpr int64_t kShortConvMaxGroups = 256;

// Rows and where sequences begin: at multiples of `length`, or at offsets[0 .. sequences] if offsets isn't
// null.
struct SequenceRows {
  int64_t rows;
  int64_t length;
  const int64_t* offsets;
  int64_t sequences;
};

// The sequence [begin, end) of rows that holds a row.
struct SequenceBounds {
  int64_t begin, end;
};

// Binary search for the packed case: offsets[found] <= row < offsets[found + 1]. The values of offsets aren't
// checked on CUDA, so the result is clamped to rows that exist: bad offsets give bad numbers, never a bad
// address.
__device__ inline SequenceBounds find_sequence(const SequenceRows& rows, int64_t row) {
  if (rows.offsets == nullptr) {
    const int64_t begin = row / rows.length * rows.length;
    return {begin, begin + rows.length};
  }
  int64_t low = 0, high = rows.sequences;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (rows.offsets[middle] <= row) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const int64_t begin = rows.offsets[low], end = rows.offsets[low + 1];
  return {smaller(larger(begin, 0), row), smaller(larger(end, row + 1), rows.rows)};
}

// The launch of both kernels: lanes along channels, then runs of rows; a block is one channel tile of one row
// group.
struct ShortConvShape {
  int64_t channel_tiles;
  int64_t groups;  // row groups: rows / (threads.y * run)
  int64_t run;     // rows a thread slides over
  LaunchShape launch;
};

// run = 0 chooses the shortest run that keeps groups <= kShortConvMaxGroups (backward); forward passes its
// own.
inline ShortConvShape short_conv_shape(
    int64_t rows, int64_t channels, int vector, int64_t run, size_t sum_bytes) {
  const int64_t vectors = ceil_div(channels, vector);
  unsigned int lanes = 1;
  while (lanes < 32 && lanes < vectors) lanes *= 2;
  const unsigned int runs = kShortConvThreads / lanes;
  if (run == 0) run = larger(16, ceil_div(rows, runs * kShortConvMaxGroups));
  ShortConvShape shape;
  shape.run = run;
  shape.channel_tiles = ceil_div(vectors, lanes);
  shape.groups = ceil_div(rows, run * runs);
  shape.launch = {
      shape.channel_tiles * shape.groups, dim3(lanes, runs), kShortConvThreads * vector * sum_bytes};
  return shape;
}

// The rows a thread has seen last, newest first: value[lag] is the row `lag` steps back (forward) or ahead
// (backward) within the same sequence, zero beyond its end.
template <typename T, int kVector, int kTaps>
struct TapWindow {
  Vector<T, kVector> value[kTaps];

  __device__ void push(const Vector<T, kVector>& row) {
#pragma unroll
    for (int lag = kTaps - 1; lag > 0; --lag) value[lag] = value[lag - 1];
    value[0] = row;
  }
};

// Slides over the rows [first, last), upwards, or downwards if kReverse, and calls visit(row, window) on each
// with the window of `source`. `source` points at the thread's channels of row 0; rows lie `stride` elements
// apart.
template <bool kReverse, int kVector, int kTaps, typename scalar_t, typename Visit>
__device__ inline void slide(
    const SequenceRows& rows, const scalar_t* __restrict__ source, int64_t stride, int width, int64_t first,
    int64_t last, Visit visit) {
  constexpr int64_t kStep = kReverse ? -1 : 1;
  using T = accumulate_t<scalar_t>;
  TapWindow<T, kVector, kTaps> window = {};
  int64_t row = kReverse ? last - 1 : first;
  SequenceBounds bounds = find_sequence(rows, row);

  // Halo: the farthest row that the first one reaches, then towards it.
  const int64_t reach = width - 1;
  const int64_t halo = kReverse ? smaller(reach, bounds.end - 1 - row) : smaller(reach, row - bounds.begin);
  for (int64_t lag = halo; lag > 0; --lag)
    window.push(load_channels<scalar_t, kVector>(source + (row - kStep * lag) * stride));

  for (int64_t left = last - first; left > 0; left -= kShortConvAhead) {
    Vector<T, kVector> ahead[kShortConvAhead];
    unrolled<kShortConvAhead>([&](int i) {
      if (i < left) ahead[i] = load_channels<scalar_t, kVector>(source + (row + kStep * i) * stride);
    });
    unrolled<kShortConvAhead>([&](int i) {
      if (i >= left) return;
      if (row < bounds.begin || row >= bounds.end) {
        bounds = find_sequence(rows, row);
        window = {};
      }
      window.push(ahead[i]);
      visit(row, window);
      row += kStep;
    });
  }
}

// The taps of kVector channels, weight[lag]; zero for lag >= width (never multiplied: 0 times infinity is
// NaN).
template <typename T, int kVector, int kTaps>
__device__ inline void load_taps(
    Vector<T, kVector> (&taps)[kTaps], const T* __restrict__ weight, int width, int64_t channel) {
  unrolled<kTaps>([&](int lag) {
    unrolled<kVector>(
        [&](int i) { taps[lag][i] = lag < width ? weight[(channel + i) * width + lag] : T(0); });
  });
}

// sum[i] += taps[lag][i] window[lag][i] over the lags < width.
template <typename T, int kVector, int kTaps>
__device__ inline void add_taps(
    Vector<T, kVector>& sum, const Vector<T, kVector> (&taps)[kTaps],
    const TapWindow<T, kVector, kTaps>& window, int width) {
  unrolled<kTaps>([&](int lag) {
    if (lag < width) unrolled<kVector>([&](int i) { sum[i] += taps[lag][i] * window.value[lag][i]; });
  });
}

// Which channels and rows a thread has. Rows may be none: first >= last.
struct ShortConvPlace {
  int64_t channel, group, first, last;
};
template <int kVector>
__device__ inline ShortConvPlace short_conv_place(int64_t rows, int64_t channel_tiles, int64_t run) {
  const int64_t tile = blockIdx.x % channel_tiles;
  const int64_t group = blockIdx.x / channel_tiles;
  const int64_t first = (group * blockDim.y + threadIdx.y) * run;
  return {(tile * blockDim.x + threadIdx.x) * kVector, group, first, smaller(first + run, rows)};
}

// out[row, d] = bias[d] + sum_lag weight[d, lag] u[row - lag, d]. kTaps >= width; channels % kVector == 0;
// u's rows lie u_stride apart, out is contiguous.
template <typename scalar_t, int kVector, int kTaps>
__global__ void __launch_bounds__(kShortConvThreads) short_conv_forward(
    SequenceRows rows, int64_t channels, int width, int64_t channel_tiles, int64_t run,
    const scalar_t* __restrict__ u, int64_t u_stride, const accumulate_t<scalar_t>* __restrict__ weight,
    const accumulate_t<scalar_t>* __restrict__ bias, scalar_t* __restrict__ out) {
  using T = accumulate_t<scalar_t>;
  const ShortConvPlace place = short_conv_place<kVector>(rows.rows, channel_tiles, run);
  if (place.channel >= channels || place.first >= place.last) return;

  Vector<T, kVector> taps[kTaps], start;
  load_taps(taps, weight, width, place.channel);
  unrolled<kVector>([&](int i) { start[i] = bias == nullptr ? T(0) : bias[place.channel + i]; });

  slide<false, kVector, kTaps>(
      rows, u + place.channel, u_stride, width, place.first, place.last,
      [&](int64_t row, const TapWindow<T, kVector, kTaps>& window) {
        Vector<T, kVector> sum = start;
        add_taps(sum, taps, window, width);
        store_channels<scalar_t, kVector>(out + row * channels + place.channel, sum);
      });
}

// grad_u[row, d] = sum_lag weight[d, lag] grad[row + lag, d] within the sequence: the same slide, downwards.
// Without grad_u (nullptr) only the rest is done.
// On the way, with the same window: partial[group, lag, d] = sum_row u[row, d] grad[row + lag, d], the row
// group's share of grad_weight, and partial[group, width, d] = sum_row grad[row, d], its share of grad_bias.
template <typename scalar_t, int kVector, int kTaps>
__global__ void __launch_bounds__(kShortConvThreads) short_conv_backward(
    SequenceRows rows, int64_t channels, int width, int64_t channel_tiles, int64_t run,
    const scalar_t* __restrict__ grad, int64_t grad_stride, const scalar_t* __restrict__ u, int64_t u_stride,
    const accumulate_t<scalar_t>* __restrict__ weight, scalar_t* __restrict__ grad_u,
    accumulate_t<scalar_t>* __restrict__ partial) {
  using T = accumulate_t<scalar_t>;
  const ShortConvPlace place = short_conv_place<kVector>(rows.rows, channel_tiles, run);
  Vector<T, kVector> grad_taps[kTaps] = {}, grad_bias = {};

  if (place.channel < channels && place.first < place.last) {
    Vector<T, kVector> taps[kTaps];
    load_taps(taps, weight, width, place.channel);
    slide<true, kVector, kTaps>(
        rows, grad + place.channel, grad_stride, width, place.first, place.last,
        [&](int64_t row, const TapWindow<T, kVector, kTaps>& window) {
          const Vector<T, kVector> input =
              load_channels<scalar_t, kVector>(u + row * u_stride + place.channel);
          Vector<T, kVector> sum = {};
          grad_bias += window.value[0];
          add_taps(sum, taps, window, width);
          unrolled<kTaps>([&](int lag) {
            unrolled<kVector>([&](int i) { grad_taps[lag][i] += input[i] * window.value[lag][i]; });
          });
          if (grad_u != nullptr)
            store_channels<scalar_t, kVector>(grad_u + row * channels + place.channel, sum);
        });
  }

  HYENAREC_SHARED_MEMORY(T, shared);
  const int64_t tile_channel = place.channel - static_cast<int64_t>(threadIdx.x) * kVector;
  T* target = partial + place.group * (width + 1) * channels + tile_channel;
  unrolled<kTaps>([&](int lag) {
    if (lag < width)
      store_group_sum(grad_taps[lag], shared, target + lag * channels, channels - tile_channel);
  });
  store_group_sum(grad_bias, shared, target + width * channels, channels - tile_channel);
}

}  // namespace hyenarec
