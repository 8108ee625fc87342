// Device code of the Legendre scan's backward sweep: from the last chunk to the first, with the adjoint of the
// state, all gradients at once. See legendre_scan.cuh, whose legendre_scan_forward<.., true> has written the
// states at the chunks' starts before.
//
// Sums over time and sequences: the near kernel's and decay's stay with their thread until the end; for the
// coefficients' far part, each chunk's products adjoint[p] moment[q] are added over the block's sequences in
// shared memory and contracted with the transfer table there, so that it is read once a block. Each block
// writes its sums, and two small launches add the blocks up in a fixed order, in double: the same bits in
// every run.
#pragma once

#include "legendre_scan.cuh"

namespace hyenarec {

struct ScanWanted {
  bool input;   // gradients of what is convolved
  bool output;  // of the gate behind the convolution
  bool kernel;  // of coeffs, decay and skip
};

// Rows of sums a block leaves, of pitch channels each: near kernel, decay, those of the source, coeffs.
constexpr int kScanDecaySum = kScanChunk;
constexpr int kScanSourceSums = kScanChunk + 1;
template <typename Source>
constexpr int kScanTimeSums = kScanSourceSums + Source::kSums;

// Shared memory, each number for 32 lanes.
template <typename T>
struct ScanSharedSums {
  T* time_sums;  // [warps, time_sum_rows]
  T* factors;    // [warps, 2 N]: adjoint, then moments
  T* products;   // [slab, N]: products of `slab` moments q with all p < N - q
  T* coeffs;     // [N]
};
struct ScanBackwardShape {
  ScanWork work;
  int slab;
  LaunchShape launch;
};
// Two blocks a multiprocessor, so that one computes while the other waits: 255 registers a thread, and 96 KiB of
// shared memory if that is possible with fewer moments at a time, then with fewer warps. At most `most_blocks`
// blocks a tile: each leaves its sums.
constexpr int kScanBackwardBlocks = 2;
template <typename Source>
ScanBackwardShape scan_backward_shape(
    const ScanWork& work, int64_t num_coeffs, int warps, int64_t slab, int64_t most_blocks) {
  using T = accumulate_t<typename Source::Scalar>;
  const auto bytes = [&] {
    return kScanLanes * static_cast<int64_t>(sizeof(T)) *
           (warps * (kScanTimeSums<Source> + 2 * num_coeffs) + (slab + 1) * num_coeffs);
  };
  constexpr int64_t kBytes = 96 * 1024;
  while (bytes() > kBytes && slab > 1) slab = ceil_div(slab, 2);
  while (bytes() > kBytes && warps > 1) warps = warps / 2;
  ScanBackwardShape shape{work, static_cast<int>(slab), {}};
  shape.work.row_groups = smaller(ceil_div(work.sequences, warps), larger(most_blocks / work.segments, 1));
  shape.launch = scan_shape(shape.work, warps);
  shape.launch.shared_bytes = static_cast<size_t>(bytes());
  return shape;
}

// One chunk's share of the coefficients' gradient, by the whole block: sum over sequences of adjoint[p]
// moment[q], contracted with transfer[q, p, k]. Warps take the products in turn, then the coefficients.
template <typename T>
__device__ inline void add_coefficient_sums(
    const ScanTables<T>& tables, int64_t chunk, int n, int slab, const ScanSharedSums<T>& shared) {
  const int warps = static_cast<int>(blockDim.y), warp = static_cast<int>(threadIdx.y);
  const int lane = static_cast<int>(threadIdx.x);
  const ScanChunkShape shape = tables.shapes[chunk];
  const int moments = static_cast<int>(shape.num_moments);
  __syncthreads();  // all factors are there, and the products of the chunk before have been read
  const T* transfer_q = tables.transfer + shape.transfer;
  for (int first = 0; first < moments; first += slab) {
    const int last = first + slab < moments ? first + slab : moments;
    for (int entry = warp; entry < (last - first) * n; entry += warps) {
      const int q = first + entry / n, p = entry % n;
      if (p + q >= n) continue;
      T sum = T(0);
      for (int i = 0; i < warps; ++i) {
        const T* factors = shared.factors + i * 2 * n * kScanLanes + lane;
        sum += factors[p * kScanLanes] * factors[(n + q) * kScanLanes];
      }
      shared.products[entry * kScanLanes + lane] = sum;
    }
    __syncthreads();
    for (int k = warp; k < n; k += warps) {
      T sum = T(0);
      const T* row = transfer_q;
      for (int q = first; q < last && q <= k; ++q) {
        const T* products = shared.products + (q - first) * n * kScanLanes + lane;
        // transfer[q, p, k] is number k - p - q of n - p - q.
        int64_t at = k - q;
        for (int p = 0; p <= k - q; ++p) {
          sum += row[at] * products[p * kScanLanes];
          at += n - p - q - 1;
        }
        row += (n - q) * (n - q + 1) / 2;
      }
      shared.coeffs[k * kScanLanes + lane] += sum;
    }
    for (int q = first; q < last; ++q) transfer_q += (n - q) * (n - q + 1) / 2;
    if (last < moments) __syncthreads();  // before these products are written over
  }
}

// What a thread has of its sequence while it walks it backwards.
template <typename Source, int kN>
struct ScanBackward {
  using T = accumulate_t<typename Source::Scalar>;

  const Source& source;
  const ScanThread<T, kN>& thread;
  const ScanWanted wanted;
  T* const near_sums;  // shared, this thread's own: [32], 32 apart
  T* const factors;    // shared, this warp's: [2 N], 32 apart
  T adjoint[kN];       // of the state behind the chunk, then at its start
  T decay_sum;
  typename Source::Memory memory;

  // near_sums[lag] += sum_j dy[j] x[j - lag].
  __device__ void add_near_sums(const T (&x)[kScanChunk], const T (&dy)[kScanChunk]) {
#pragma unroll
    for (int lag = 0; lag < kScanChunk; ++lag) {
      T sums[2] = {T(0), T(0)};
#pragma unroll
      for (int j = lag; j < kScanChunk; ++j) sums[j % 2] += dy[j] * x[j - lag];
      near_sums[lag * kScanLanes] += sums[0] + sums[1];
    }
  }

  __device__ void store_factors(int64_t chunk, const T (&x)[kScanChunk]) {
    store_state<kN>(factors, kScanLanes, adjoint, thread.coeffs());
    ScanHalves<T> halves;
    halves.take([&](int j) { return thread.lift(j) * x[j]; });
    T* moments = factors + thread.coeffs() * kScanLanes;
    thread.for_each_moment(chunk, [&](int q, const T*) { moments[q * kScanLanes] = halves.moment(q); });
  }
  __device__ void clear_factors() {
    for (int i = 0; i < 2 * thread.coeffs(); ++i) factors[i * kScanLanes] = T(0);
  }

  // dx[j] = what the states behind the chunk say of its inputs.
  __device__ void input_from_adjoint(int64_t chunk, T (&dx)[kScanChunk]) const {
    const int n = thread.coeffs();
    ScanHalves<T> halves;
    halves.clear();
    thread.for_each_moment(chunk, [&](int q, const T* entries) {
      T sum = T(0);
#pragma unroll kScanUnroll < kN>
      for (int p = 0; p < n - q; ++p) sum += entries[p * kScanLanes] * adjoint[p];
      halves.add(q, sum);
    });
#pragma unroll
    for (int j = 0; j < kScanChunk; ++j) dx[j] = thread.lift(j) * halves.value(j);
  }

  // One chunk. `state` points at the state at its start, null for the sequence's first; is_last: no state
  // behind it.
  __device__ void walk(int64_t chunk, int64_t row, int rows, bool is_last, const T* __restrict__ state) {
    const int n = thread.coeffs();
    const int64_t before = chunk * kScanChunk, channel = thread.channel;
    const int pitch = thread.channels.pitch;
    T x[kScanChunk], dy[kScanChunk], y[kScanChunk];
    const bool needs_y = wanted.output || wanted.kernel;
#pragma unroll
    for (int j = 0; j < kScanChunk; ++j) y[j] = T(0);
    if (needs_y && state != nullptr) {
      T start[kN];
      load_state<kN>(state, pitch, start, n);
      thread.evaluate(chunk, start, y);
    }
    end_of_phase();
    source.load_gradient(channel, row, before, rows, dy);
#pragma unroll
    for (int j = 0; j < kScanChunk; ++j) decay_sum -= static_cast<T>(j) * dy[j] * y[j];
    end_of_phase();
    source.load_input(channel, row, before, rows, x);
    if (wanted.output) {
      add_near(thread, x, y);
      source.store_output_gradient(memory, channel, row, before, rows, y);
    }
    end_of_phase();
    if (wanted.kernel) {
      add_near_sums(x, dy);
      end_of_phase();
      is_last ? clear_factors() : store_factors(chunk, x);
    }
    end_of_phase();
    if (wanted.input || wanted.kernel) {
      if (is_last) {
#pragma unroll
        for (int j = 0; j < kScanChunk; ++j) y[j] = T(0);
      } else {
        input_from_adjoint(chunk, y);
      }
#pragma unroll
      for (int j = 0; j < kScanChunk; ++j) decay_sum -= static_cast<T>(kScanChunk - j) * x[j] * y[j];
    }
    end_of_phase();
    if (wanted.input) {
      add_near_adjoint(thread, dy, y);
      source.store_input_gradient(memory, channel, row, before, rows, y);
    }
    if (state == nullptr) return;
    end_of_phase();
    if (!is_last) {
      transposed_restrict<kN>(
          thread.tables.restriction_change(chunk), thread.pitch(), thread.fade(kScanChunkDecay), adjoint, n);
      if (wanted.kernel) {
        T sum = T(0);
#pragma unroll kScanUnroll < kN>
        for (int p = 0; p < n; ++p) sum += state[p * pitch] * adjoint[p];
        decay_sum -= static_cast<T>(kScanChunk) * sum;
      }
    }
    thread.evaluate_adjoint(chunk, dy, adjoint);
  }
};

// All gradients. states: at the start of every chunk but a sequence's first; carry: the adjoint at the start
// of segments, null with one segment; partial [row_groups, segments, kScanTimeSums + N, pitch], null if
// nothing is to be summed. Beyond legendre_scan.cuh's, a source has
//   Memory                                      what a thread keeps from chunk to chunk
//   kSums, store_sums(memory, to)               sums over time of its own
//   begin(memory)                               at the start
//   begin_segment(memory, channel, before, behind), end_segment(memory)
//                                               around the chunks of a segment, walked backwards
//   store_output_gradient(memory, .., y)        of the gate, from the convolution's output y
//   store_input_gradient(memory, .., dx)        of z's factors
//   poison_gradients(channel, row)              NaN to them, for a row beyond the horizon
template <typename Source, int kN>
__global__ void __launch_bounds__(kScanThreads, kScanBackwardBlocks) legendre_scan_backward(
    ScanWork work,
    ScanTables<accumulate_t<typename Source::Scalar>> tables,
    ScanChannels<accumulate_t<typename Source::Scalar>> channels,
    Source source,
    ScanWanted wanted,
    int slab,
    const accumulate_t<typename Source::Scalar>* __restrict__ states,
    const accumulate_t<typename Source::Scalar>* __restrict__ carry,
    accumulate_t<typename Source::Scalar>* __restrict__ partial) {
  using T = accumulate_t<typename Source::Scalar>;
  constexpr int kTimeSums = kScanTimeSums<Source>;
  const ScanPlace place = scan_place(work);
  const ScanThread<T, kN> thread{tables, channels, place.tile, place.channel};
  const int n = thread.coeffs();
  const int warps = static_cast<int>(blockDim.y), warp = static_cast<int>(threadIdx.y);
  const int lane = static_cast<int>(threadIdx.x);
  const bool is_channel = place.channel < work.channels;

  HYENAREC_SHARED_MEMORY(T, memory);
  T* const factors = memory + warps * kTimeSums * kScanLanes;
  T* const products = factors + warps * 2 * n * kScanLanes;
  const ScanSharedSums<T> shared{memory, factors, products, products + slab * n * kScanLanes};
  T* const time_sums = shared.time_sums + warp * kTimeSums * kScanLanes + lane;
  for (int i = 0; i < kTimeSums; ++i) time_sums[i * kScanLanes] = T(0);
  for (int k = warp; k < n; k += warps) shared.coeffs[k * kScanLanes + lane] = T(0);

  ScanBackward<Source, kN> walker{
      source, thread, wanted, time_sums, shared.factors + warp * 2 * n * kScanLanes + lane, {}, T(0), {}};
  source.begin(walker.memory);
  const int64_t unit = work.segment_chunks * kScanChunk;
  // All warps of the block make the same steps: what they add up, they add up together.
  for (int64_t first = place.group * warps; first < work.sequences; first += work.row_groups * warps) {
    const ScanSequence sequence = work.sequence(first + warp);
    const ScanChunks mine = chunks_of_segment(work, sequence, place.segment);
    int64_t most = 0;  // chunks of the block's longest sequence
    for (int i = 0; i < warps; ++i) most = larger(most, chunks_of(work.sequence(first + i)));
    const int64_t segment_end = mine.first + work.segment_chunks;

    clear_state<kN>(walker.adjoint, n);
    const int64_t slot = work.slot(sequence, unit) + place.segment;
    const bool has_successor = chunks_of(sequence) > segment_end;
    if (is_channel && has_successor) {
      load_state<kN>(
          carry + (slot + 1) * n * channels.pitch + place.channel, channels.pitch, walker.adjoint, n);
    }
    source.begin_segment(
        walker.memory, place.channel, place.segment > 0 ? slot : -1, has_successor ? slot + 1 : -1);
    for (int64_t chunk = smaller(segment_end, most) - 1; chunk >= mine.first; --chunk) {
      const bool is_last = chunk + 1 == chunks_of(sequence);
      if (is_channel && chunk < mine.last) {
        const int64_t start = work.slot(sequence, kScanChunk) + chunk;
        walker.walk(
            chunk, sequence.begin + chunk * kScanChunk, chunk_rows(sequence, chunk), is_last,
            chunk > 0 ? states + start * n * channels.pitch + place.channel : nullptr);
      } else if (wanted.kernel) {
        walker.clear_factors();
      }
      if (wanted.kernel && chunk + 1 < most) add_coefficient_sums(tables, chunk, n, slab, shared);
    }
    if (is_channel && mine.first < mine.last) source.end_segment(walker.memory);
    if (is_channel && place.segment == 0) {
      for (int64_t i = 0; i < sequence.excess; ++i)
        source.poison_gradients(place.channel, sequence.begin + sequence.length + i);
    }
  }

  if (!wanted.kernel) return;
  time_sums[kScanDecaySum * kScanLanes] = walker.decay_sum;
  source.store_sums(walker.memory, time_sums + kScanSourceSums * kScanLanes);
  __syncthreads();
  T* target = partial + (place.group * work.segments + place.segment) * (kTimeSums + n) * channels.pitch +
              place.channel;
  for (int row = warp; row < kTimeSums; row += warps) {
    T sum = T(0);
    for (int i = 0; i < warps; ++i) sum += shared.time_sums[(i * kTimeSums + row) * kScanLanes + lane];
    target[row * channels.pitch] = sum;
  }
  for (int k = warp; k < n; k += warps)
    target[(kTimeSums + k) * channels.pitch] = shared.coeffs[k * kScanLanes + lane];
}

// sums[row, channel] over the blocks, in order, in double. A block has one row and 32 channels; its up to
// eight warps take the blocks in turn, then the warps' sums are added.
template <typename T>
__global__ void __launch_bounds__(kScanTableThreads) legendre_scan_sum(
    int64_t blocks, int64_t rows, int64_t pitch, const T* __restrict__ partial, double* __restrict__ sums) {
  HYENAREC_SHARED_MEMORY(double, shared);
  const int64_t tiles = pitch / kScanLanes;
  const int64_t number = blockIdx.x / tiles * pitch + blockIdx.x % tiles * kScanLanes + threadIdx.x;
  double sum = 0;
#pragma unroll 4
  for (int64_t block = threadIdx.y; block < blocks; block += blockDim.y)
    sum += static_cast<double>(partial[block * rows * pitch + number]);
  shared[threadIdx.y * kScanLanes + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0) return;
  sum = 0;
  for (unsigned int i = 0; i < blockDim.y; ++i) sum += shared[i * kScanLanes + threadIdx.x];
  sums[number] = sum;
}
inline LaunchShape scan_sum_shape(int64_t blocks, int64_t rows, int64_t pitch) {
  const auto warps = static_cast<unsigned int>(smaller(blocks, kScanTableThreads / kScanLanes));
  return {rows * (pitch / kScanLanes), dim3(kScanLanes, warps), warps * kScanLanes * sizeof(double)};
}

// coeffs' and decay's gradients from the sums of legendre_scan_sum, skip's too: the far parts are there, the
// near kernel's goes through its formula. A thread has one channel of one of the `given` coefficients, of decay
// or of skip. Null: not wanted.
template <typename T>
__global__ void __launch_bounds__(kScanTableThreads) legendre_scan_finish(
    int64_t channels,
    int64_t pitch,
    int64_t given,
    int64_t horizon,
    int64_t coeffs_row,
    const double* __restrict__ sums,
    const T* __restrict__ near,
    const T* __restrict__ decay,
    T* __restrict__ grad_coeffs,
    T* __restrict__ grad_decay,
    T* __restrict__ grad_skip) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t row = number / channels, channel = number % channels;
  const int64_t lags = smaller(kScanChunk, horizon);
  const double* near_sums = sums + channel;
  if (row < given && grad_coeffs != nullptr) {
    const double rate = static_cast<double>(decay[channel]);
    double sum = sums[(coeffs_row + row) * pitch + channel];
    for (int64_t lag = 0; lag < lags; ++lag) {
      const double place = legendre_position(lag, horizon);
      double current = 1.0, previous = 0.0;
      for (int64_t k = 0; k < row; ++k) {
        const double next = legendre_next(k, place, current, previous);
        previous = current;
        current = next;
      }
      sum += near_sums[lag * pitch] * exp(-rate * static_cast<double>(lag)) * current;
    }
    grad_coeffs[channel * given + row] = static_cast<T>(sum);
  } else if (row == given && grad_decay != nullptr) {
    const T* taps = near + channel / kScanLanes * kScanChunk * kScanLanes + channel % kScanLanes;
    double sum = sums[kScanDecaySum * pitch + channel];
    for (int64_t lag = 1; lag < lags; ++lag)
      sum -= static_cast<double>(lag) * static_cast<double>(taps[lag * kScanLanes]) * near_sums[lag * pitch];
    grad_decay[channel] = static_cast<T>(sum);
  } else if (row == given + 1 && grad_skip != nullptr) {
    grad_skip[channel] = static_cast<T>(near_sums[0]);
  }
}
inline LaunchShape scan_finish_shape(int64_t channels, int64_t given) {
  return {ceil_div((given + 2) * channels, kScanTableThreads), dim3(kScanTableThreads), 0};
}

}  // namespace hyenarec
