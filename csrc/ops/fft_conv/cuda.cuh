// Device code of fft_conv around cuFFT: pack (gate, pad, transpose), the complex products, unpack (crop,
// gate, transpose back). skip needs no pass of its own: it is one more number at lag 0, so it is added to the
// kernel there before its transform, and its gradient is the kernel's at lag 0. (Adding it on the way out
// would read u and pre_gate once more.)
//
// Activations are [B, L, D], channels fastest; cuFFT wants each channel's time in a row: a "signal" is
// [batch, channel, pitch] with pitch = 2 (size / 2 + 1), `size` reals on the way in, size / 2 + 1 complex
// numbers in place on the way out. Both transposing kernels go through a 32 x 32 tile in shared memory so
// that they read and write 32 neighbours on both sides.
//
// A launch handles `batch` sequences and `channels` of the D channels (what the workspace limit allows at a
// time); the caller offsets the pointers. Bytes that must move, per sequence and channel, T the type of the
// sums:
//   pack     L (u, and its gate) + size T;   product  2 (size + 2) T (in place);
//   unpack   L T + L (the factors and outputs that are there)
#pragma once

#include "../common/cuda/activation.cuh"
#include "fft_size.h"

namespace hyenarec {

constexpr int kTransposeTile = 32;
constexpr int kTransposeRows = 4;  // a thread carries 32 / 4 elements of a tile: loads in flight

inline int64_t spectrum_size(int64_t size) { return size / 2 + 1; }
inline int64_t signal_pitch(int64_t size) { return 2 * spectrum_size(size); }

// A tile's first time and channel and its sequence; channel tiles lie next to each other.
struct TransposePlace {
  int64_t batch, time, channel;
};
__device__ inline TransposePlace transpose_place(int64_t channels, int64_t times) {
  const int64_t channel_tiles = ceil_div(channels, kTransposeTile),
                time_tiles = ceil_div(times, kTransposeTile);
  const int64_t row = blockIdx.x / channel_tiles;
  return {row / time_tiles, row % time_tiles * kTransposeTile, blockIdx.x % channel_tiles * kTransposeTile};
}
template <typename T>
LaunchShape transpose_shape(int64_t batch, int64_t channels, int64_t times) {
  return {
      batch * ceil_div(channels, kTransposeTile) * ceil_div(times, kTransposeTile),
      dim3(kTransposeTile, kTransposeRows),
      kTransposeTile * (kTransposeTile + 1) * sizeof(T)};  // a pitch of 33: no bank conflicts on either side
}

// Transposes a tile in shared memory: store(i, value) gets what load(threadIdx.x) gave to thread x = i.
template <typename T, typename Load, typename Store>
__device__ inline void through_tile(const Load& load, const Store& store) {
  HYENAREC_SHARED_MEMORY(T, tile);
#pragma unroll
  for (int i = threadIdx.y; i < kTransposeTile; i += kTransposeRows)
    tile[i * (kTransposeTile + 1) + threadIdx.x] = load(i);
  __syncthreads();
#pragma unroll
  for (int i = threadIdx.y; i < kTransposeTile; i += kTransposeRows)
    store(i, tile[threadIdx.x * (kTransposeTile + 1) + i]);
}

// signal[b, d, t] = input[b, t, d] gate[b, t, d] for t < length, 0 for length <= t < size.
// Launch over transpose_shape(batch, channels, size).
template <typename scalar_t>
__global__ void __launch_bounds__(kTransposeTile* kTransposeRows) fft_conv_pack(
    int64_t channels, int64_t length, int64_t size, int64_t pitch, Activation<const scalar_t> input,
    Activation<const scalar_t> gate, accumulate_t<scalar_t>* __restrict__ signal) {
  using T = accumulate_t<scalar_t>;
  const TransposePlace place = transpose_place(channels, size);
  const int64_t channel = place.channel + threadIdx.x, row_time = place.time + threadIdx.x;
  through_tile<T>(
      [&](int i) {
        const int64_t time = place.time + i;
        if (time >= length || channel >= channels) return T(0);
        return static_cast<T>(*input.at(place.batch, time, channel)) *
               load_or_one<scalar_t>(gate, place.batch, time, channel);
      },
      [&](int i, T value) {
        const int64_t row = place.channel + i;
        if (row_time < size && row < channels)
          signal[(place.batch * channels + row) * pitch + row_time] = value;
      });
}

// out[b, t, d] = signal[b, d, t] factor[b, t, d] and, if it is wanted, second_out = signal second_factor, t <
// length. Launch over transpose_shape(batch, channels, length). With z = pre_gate u, y = post_gate grad, and
// skip in the kernel (below):
//   forward               signal: kernel convolved with z    out = post_gate signal
//   grad_u, grad_pre_gate signal: kernel correlated with y   out = pre_gate signal, second_out = u signal
//   grad_post_gate        signal: kernel convolved with z    out = grad signal
template <typename scalar_t>
__global__ void __launch_bounds__(kTransposeTile* kTransposeRows) fft_conv_unpack(
    int64_t channels, int64_t length, int64_t pitch, const accumulate_t<scalar_t>* __restrict__ signal,
    Activation<const scalar_t> factor, Activation<scalar_t> out, Activation<const scalar_t> second_factor,
    Activation<scalar_t> second_out) {
  using T = accumulate_t<scalar_t>;
  const TransposePlace place = transpose_place(channels, length);
  const int64_t channel = place.channel + threadIdx.x, row_time = place.time + threadIdx.x;
  through_tile<T>(
      [&](int i) {
        const int64_t row = place.channel + i;
        const bool inside = row_time < length && row < channels;
        return inside ? signal[(place.batch * channels + row) * pitch + row_time] : T(0);
      },
      [&](int i, T value) {
        const int64_t time = place.time + i;
        if (time >= length || channel >= channels) return;
        const auto multiply_into = [&](const auto& to, const auto& by) {
          if (to.data != nullptr)
            *to.at(place.batch, time, channel) =
                static_cast<scalar_t>(value * load_or_one<scalar_t>(by, place.batch, time, channel));
        };
        multiply_into(out, factor);
        multiply_into(second_out, second_factor);
      });
}

// Laid out like cufftComplex and cufftDoubleComplex.
template <typename T>
struct alignas(2 * sizeof(T)) Complex {
  T real, imag;
};
template <typename T>
__device__ inline Complex<T> multiply(Complex<T> a, Complex<T> b) {
  return {a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real};
}
template <typename T>
__device__ inline Complex<T> multiply_conjugate(Complex<T> a, Complex<T> b) {  // conj(a) b
  return {a.real * b.real + a.imag * b.imag, a.real * b.imag - a.imag * b.real};
}

// What fft_conv_product is to compute.
struct SpectralProducts {
  bool convolve;    // z = scale kernel z, in place
  bool correlate;   // y = scale conj(kernel) y, in place
  bool reduce;      // grad_kernel = scale sum_b conj(z) y
  bool accumulate;  // .. added to what grad_kernel holds (from the sequences before)
};

constexpr int kProductThreads = 128;
constexpr int kProductMaxLanes = 8;

// Blocks are (threads.y lanes of sequences, threads.x frequencies); a thread keeps its frequency of one
// channel and takes every threads.y-th sequence, so grad_kernel needs no atomics: the lanes are summed in
// order.
template <typename T>
LaunchShape product_shape(int64_t batch, int64_t channels, int64_t frequencies) {
  unsigned int lanes = 1;
  while (lanes < kProductMaxLanes && lanes < batch) lanes *= 2;
  const unsigned int columns = kProductThreads / lanes;
  return {
      channels * ceil_div(frequencies, columns), dim3(columns, lanes), kProductThreads * sizeof(Complex<T>)};
}

// z, y                 [batch, channels, frequencies]: spectra of pre_gate u and of post_gate grad; each may
//                      be nullptr if not needed
// kernel, grad_kernel  [channels, frequencies]; each may be nullptr if not needed
// scale                1 / transform size, since cuFFT's transforms are not normalised
template <typename T>
__global__ void __launch_bounds__(kProductThreads) fft_conv_product(
    int64_t batch, int64_t channels, int64_t frequencies, T scale, SpectralProducts wanted,
    const Complex<T>* __restrict__ kernel, Complex<T>* __restrict__ z, Complex<T>* __restrict__ y,
    Complex<T>* __restrict__ grad_kernel) {
  const int64_t tiles = ceil_div(frequencies, blockDim.x);
  const int64_t channel = blockIdx.x / tiles;
  const int64_t frequency = blockIdx.x % tiles * blockDim.x + threadIdx.x;
  const bool inside = frequency < frequencies;

  Complex<T> sum = {T(0), T(0)};
  if (inside) {
    Complex<T> weight = {T(0), T(0)};
    if (wanted.convolve || wanted.correlate) {
      weight = kernel[channel * frequencies + frequency];
      weight = {weight.real * scale, weight.imag * scale};
    }
    for (int64_t b = threadIdx.y; b < batch; b += blockDim.y) {
      const int64_t index = (b * channels + channel) * frequencies + frequency;
      Complex<T> input = {T(0), T(0)}, output = {T(0), T(0)};
      if (z != nullptr) input = z[index];
      if (y != nullptr) output = y[index];
      if (wanted.convolve) z[index] = multiply(weight, input);
      if (wanted.correlate) y[index] = multiply_conjugate(weight, output);
      if (wanted.reduce) {
        const Complex<T> product = multiply_conjugate(input, output);
        sum.real += product.real;
        sum.imag += product.imag;
      }
    }
  }
  if (!wanted.reduce) return;

  HYENAREC_SHARED_MEMORY(Complex<T>, lanes);  // [threads.y, threads.x]
  lanes[threadIdx.y * blockDim.x + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || !inside) return;
  for (unsigned int lane = 1; lane < blockDim.y; ++lane) {
    sum.real += lanes[lane * blockDim.x + threadIdx.x].real;
    sum.imag += lanes[lane * blockDim.x + threadIdx.x].imag;
  }
  Complex<T>* target = grad_kernel + channel * frequencies + frequency;
  const Complex<T> before = wanted.accumulate ? *target : Complex<T>{T(0), T(0)};
  *target = {before.real + sum.real * scale, before.imag + sum.imag * scale};
}

}  // namespace hyenarec
