// Device code of legendre_kernel: kernel[d, lag] = exp(-decay[d] lag) sum_n coeffs[d, n] P_n(u(lag)), see
// ../legendre_kernel.h.
//
// The polynomials depend on the lag only, so a thread that walks the recurrence for one lag uses each P_n for
// a whole tile of channels. The recurrence runs in double whatever T is: in float it alone costs 4e-6
// relative at degree 32. Shared by a tile of channels that is two or three double operations beside 8 to 32
// in T, so the sums over n and the exponential stay in T: they lose no more than float has (the sum of N
// rounded terms; and x exp(-x) 6e-8 <= 2.3e-8 for the rounded exponent).
//
// Bytes that must move: D length values written (forward) or read (backward); coeffs and decay are small. N
// has no limit: degrees come in tiles.
#pragma once

#include "../common/cuda/device.cuh"
#include "../legendre_scan/math.h"

namespace hyenarec {

constexpr int kLegendreForwardThreads = 128;  // lags of a block
constexpr int kLegendreForwardChannels = 8;   // channels of a block
constexpr int kLegendreForwardDegrees = 64;   // degrees that shared memory holds at a time

// A thread has one lag and sums kLegendreForwardChannels channels; blocks: lag tiles within channel tiles.
template <typename T>
__global__ void __launch_bounds__(kLegendreForwardThreads) legendre_kernel_forward(
    int64_t channels, int64_t degrees, int64_t horizon, int64_t length, const T* __restrict__ coeffs,
    const T* __restrict__ decay, T* __restrict__ kernel) {
  constexpr int kChannels = kLegendreForwardChannels, kDegrees = kLegendreForwardDegrees;
  HYENAREC_SHARED_MEMORY(double, ratios);             // [kDegrees]: n / (n + 1)
  T* tile = reinterpret_cast<T*>(ratios + kDegrees);  // [kDegrees, kChannels]: coeffs, zero outside

  const int64_t lag_tiles = ceil_div(length, kLegendreForwardThreads);
  const int64_t lag = blockIdx.x % lag_tiles * kLegendreForwardThreads + threadIdx.x;
  const int64_t first_channel = blockIdx.x / lag_tiles * kChannels;

  // Threads beyond `length` compute along for the barriers and write nothing.
  const double position = legendre_position(smaller(lag, length - 1), horizon);
  double current = 1, previous = 0;
  T sum[kChannels] = {};
  for (int64_t first_degree = 0; first_degree < degrees; first_degree += kDegrees) {
    __syncthreads();  // the last tile has been used
    for (int i = threadIdx.x; i < kDegrees * kChannels; i += kLegendreForwardThreads) {
      const int64_t channel = first_channel + i / kDegrees, degree = first_degree + i % kDegrees;
      const bool inside = channel < channels && degree < degrees;
      tile[i % kDegrees * kChannels + i / kDegrees] = inside ? coeffs[channel * degrees + degree] : T(0);
    }
    for (int i = threadIdx.x; i < kDegrees; i += kLegendreForwardThreads)
      ratios[i] = static_cast<double>(first_degree + i) / static_cast<double>(first_degree + i + 1);
    __syncthreads();

    const int count = static_cast<int>(smaller(kDegrees, degrees - first_degree));
    for (int n = 0; n < count; ++n) {
      const T polynomial = static_cast<T>(current);
      unrolled<kChannels>([&](int c) { sum[c] += tile[n * kChannels + c] * polynomial; });
      const double next = legendre_recurrence(ratios[n], position, current, previous);
      previous = current;
      current = next;
    }
  }

  if (lag >= length) return;
  unrolled<kChannels>([&](int c) {
    const int64_t channel = first_channel + c;
    if (channel < channels)
      kernel[channel * length + lag] = sum[c] * exp(-decay[channel] * static_cast<T>(lag));
  });
}

template <typename T>
LaunchShape legendre_kernel_forward_shape(int64_t channels, int64_t length) {
  return {
      ceil_div(length, kLegendreForwardThreads) * ceil_div(channels, kLegendreForwardChannels),
      dim3(kLegendreForwardThreads),
      kLegendreForwardDegrees * (sizeof(double) + kLegendreForwardChannels * sizeof(T))};
}

// Backward, first stage: moments[segment, 0, d, n] = sum_lag w[d, lag] P_n(u(lag)) over the lags of the
// segment and moments[segment, 1, d, n] = sum_lag lag w[d, lag] P_n(u(lag)), w = grad exp(-decay lag). The
// first is grad_coeffs; the second, contracted with -coeffs, grad_decay. (Getting it from the first by lag
// P_n = combinations of P_{n-1}, P_n, P_{n+1} would cancel: a burst's few lags against the whole horizon.)
//
// It is a matrix product [channels, lags] x [lags, degrees]. A block takes one tile of channels and of
// degrees and walks along its segment of lags: it computes P (one lag a thread) and w in shared memory, then
// each thread sums one degree for four channels.
constexpr int kLegendreBackwardChannels = 16;
constexpr int kLegendreBackwardDegrees = 36;  // at most; 33 = 2^5 + 1 fits
constexpr int kLegendreBackwardPerThread = 4;
template <typename T>
constexpr int kLegendreBackwardLags = 512 /
                                      sizeof(T);  // lags at a time, so that shared memory stays below 48 KiB
constexpr int kLegendreBackwardPitch = kLegendreBackwardDegrees + 1;         // odd: fewer bank conflicts
constexpr int kLegendreBackwardWeightPitch = kLegendreBackwardChannels + 4;  // keeps four channels aligned

struct LegendreBackwardShape {
  int64_t degree_tiles;
  int64_t tile_degrees;  // degrees of a tile
  int64_t segments;      // segments of lags
  int64_t segment_lags;  // lags of a segment, a multiple of kLegendreBackwardLags
  LaunchShape launch;
};

template <typename T>
LegendreBackwardShape legendre_kernel_backward_shape(int64_t channels, int64_t degrees, int64_t length) {
  constexpr int64_t kLags = kLegendreBackwardLags<T>, kMaxSegments = 32;
  LegendreBackwardShape shape;
  shape.degree_tiles = ceil_div(degrees, kLegendreBackwardDegrees);
  shape.tile_degrees = ceil_div(degrees, shape.degree_tiles);
  const int64_t lag_tiles = ceil_div(length, kLags);
  shape.segment_lags = larger(4, ceil_div(lag_tiles, kMaxSegments)) * kLags;
  shape.segments = ceil_div(length, shape.segment_lags);
  const int64_t threads = shape.tile_degrees * kLegendreBackwardChannels / kLegendreBackwardPerThread;
  shape.launch = {
      ceil_div(channels, kLegendreBackwardChannels) * shape.degree_tiles * shape.segments,
      dim3(static_cast<unsigned int>(ceil_div(threads, 32) * 32)),
      kLegendreBackwardDegrees * sizeof(double) +
          static_cast<size_t>(kLags) * (kLegendreBackwardPitch + kLegendreBackwardWeightPitch) * sizeof(T)};
  return shape;
}

// P_n(u(lag)) of the degrees [first_degree, first_degree + tile_degrees) and the lags from first_lag on into
// polynomials[lag, n]; lags from last_lag on repeat the last, finite, to be multiplied by zero. Lower degrees
// are walked through, not kept. All threads of the block take part.
template <typename T>
__device__ inline void fill_polynomials(
    int64_t first_lag, int64_t last_lag, int64_t horizon, int64_t first_degree, int tile_degrees,
    double* ratios, T* polynomials) {
  constexpr int kLags = kLegendreBackwardLags<T>;
  // More lags than threads: a thread takes several, one after another.
  for (int base = 0; base < kLags; base += blockDim.x) {
    const int lag = base + threadIdx.x;
    const double position = legendre_position(smaller(first_lag + lag, last_lag - 1), horizon);
    double current = 1, previous = 0;
    for (int64_t degree = 0; degree <= first_degree; degree += tile_degrees) {
      __syncthreads();  // the last ratios have been used
      for (int n = threadIdx.x; n < tile_degrees; n += blockDim.x)
        ratios[n] = static_cast<double>(degree + n) / static_cast<double>(degree + n + 1);
      __syncthreads();
      for (int n = 0; n < tile_degrees; ++n) {
        if (degree == first_degree && lag < kLags)
          polynomials[lag * kLegendreBackwardPitch + n] = static_cast<T>(current);
        const double next = legendre_recurrence(ratios[n], position, current, previous);
        previous = current;
        current = next;
      }
    }
  }
}

template <typename T>
__global__ void legendre_kernel_moments(
    int64_t channels, int64_t degrees, int64_t horizon, int64_t length, int64_t degree_tiles,
    int64_t tile_degrees, int64_t segments, int64_t segment_lags, const T* __restrict__ grad,
    const T* __restrict__ decay, double* __restrict__ moments) {
  constexpr int kLags = kLegendreBackwardLags<T>, kChannels = kLegendreBackwardChannels;
  constexpr int kPerThread = kLegendreBackwardPerThread;
  HYENAREC_SHARED_MEMORY(double, ratios);                                    // [kLegendreBackwardDegrees]
  T* polynomials = reinterpret_cast<T*>(ratios + kLegendreBackwardDegrees);  // [kLags, pitch]
  T* weights = polynomials + kLags * kLegendreBackwardPitch;                 // [kLags, weight pitch]

  const int64_t segment = blockIdx.x % segments;
  const int64_t first_degree = blockIdx.x / segments % degree_tiles * tile_degrees;
  const int64_t first_channel = blockIdx.x / segments / degree_tiles * kChannels;
  const int64_t last_lag = smaller((segment + 1) * segment_lags, length);

  // This thread's degree of the tile and its first channel of the tile; beyond the channels it only helps to
  // fill.
  const int degree = static_cast<int>(threadIdx.x % tile_degrees);
  const int channel = static_cast<int>(threadIdx.x / tile_degrees) * kPerThread;
  double plain[kPerThread] = {}, by_lag[kPerThread] = {};

  for (int64_t first_lag = segment * segment_lags; first_lag < last_lag; first_lag += kLags) {
    // The barriers inside also end the last round's reading.
    fill_polynomials(
        first_lag, last_lag, horizon, first_degree, static_cast<int>(tile_degrees), ratios, polynomials);
    for (int i = threadIdx.x; i < kLags * kChannels; i += blockDim.x) {
      const int64_t lag = first_lag + i % kLags, row = first_channel + i / kLags;
      T weight = T(0);
      if (lag < last_lag && row < channels)
        weight = grad[row * length + lag] * exp(-decay[row] * static_cast<T>(lag));
      weights[i % kLags * kLegendreBackwardWeightPitch + i / kLags] = weight;
    }
    __syncthreads();

    if (channel < kChannels) {
      // Sums of one round in T, of all rounds in double: rounding does not grow with length.
      T round[kPerThread] = {}, round_by_lag[kPerThread] = {};
      for (int lag = 0; lag < kLags; ++lag) {
        const T polynomial = polynomials[lag * kLegendreBackwardPitch + degree];
        const T times_lag = polynomial * static_cast<T>(first_lag + lag);
        const T* weight = weights + lag * kLegendreBackwardWeightPitch + channel;
        unrolled<kPerThread>([&](int c) {
          round[c] += weight[c] * polynomial;
          round_by_lag[c] += weight[c] * times_lag;
        });
      }
      unrolled<kPerThread>([&](int c) {
        plain[c] += static_cast<double>(round[c]);
        by_lag[c] += static_cast<double>(round_by_lag[c]);
      });
    }
  }

  if (channel >= kChannels || first_degree + degree >= degrees) return;
  double* target = moments + 2 * segment * channels * degrees + first_degree + degree;
  unrolled<kPerThread>([&](int c) {
    const int64_t row = first_channel + channel + c;
    if (row >= channels) return;
    target[row * degrees] = plain[c];
    target[(channels + row) * degrees] = by_lag[c];
  });
}

// Backward, second stage: the segments' moments in their order; one warp a channel, lanes along degrees.
// grad_coeffs[d, n] = moments[0, d, n], grad_decay[d] = -sum_n coeffs[d, n] moments[1, d, n].
constexpr int kLegendreFinishWarps = 4;
template <typename T>
__global__ void __launch_bounds__(32 * kLegendreFinishWarps) legendre_kernel_backward_finish(
    int64_t channels, int64_t degrees, int64_t segments, const double* __restrict__ moments,
    const T* __restrict__ coeffs, T* __restrict__ grad_coeffs, T* __restrict__ grad_decay) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kLegendreFinishWarps + threadIdx.y;
  if (channel >= channels) return;  // the whole warp: the shuffles below have all lanes
  double decay_sum = 0;
  for (int64_t degree = threadIdx.x; degree < degrees; degree += 32) {
    double plain = 0, by_lag = 0;
    for (int64_t segment = 0; segment < segments; ++segment) {
      const double* source = moments + (2 * segment * channels + channel) * degrees + degree;
      plain += source[0];
      by_lag += source[channels * degrees];
    }
    grad_coeffs[channel * degrees + degree] = static_cast<T>(plain);
    decay_sum += static_cast<double>(coeffs[channel * degrees + degree]) * by_lag;
  }
  decay_sum = warp_sum(decay_sum);
  if (threadIdx.x == 0) grad_decay[channel] = static_cast<T>(-decay_sum);
}
inline LaunchShape legendre_kernel_finish_shape(int64_t channels) {
  return {ceil_div(channels, kLegendreFinishWarps), dim3(32, kLegendreFinishWarps), 0};
}

}  // namespace hyenarec
