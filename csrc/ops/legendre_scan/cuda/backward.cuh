// Device code of the Legendre scan's backward sweep: from the last chunk to the first, with the gradient of
// the state, all gradients at once. legendre_scan_forward<.., true> of forward.cuh has written the states at
// the chunks' starts before.
//
// Sums over time and sequences: the near kernel's and decay's stay with their thread until the end; for the
// coefficients' far part, each chunk's products state_grad[p] moment[q] are added over the block's sequences
// in shared memory and contracted with the transfer table there, so that it is read once a block. Each block
// writes its sums; torch adds the blocks up, in double and in a fixed order: the same bits in every run.
#pragma once

#include "../gradient_mask.h"
#include "forward.cuh"

namespace hyenarec {

// Sums over time that a thread keeps in shared memory: near kernel, decay, those of the ScanIO. With those of
// coeffs behind the near kernel's they are the rows of sums that a block leaves, of pitch channels each.
constexpr int kScanDecaySum = kScanChunk;
constexpr int kScanIOSums = kScanChunk + 1;
template <typename IO>
constexpr int kScanTimeSums = kScanIOSums + IO::kSums;
template <typename IO>
constexpr int64_t scan_sum_rows(int64_t num_coeffs) {
  return kScanTimeSums<IO> + num_coeffs;
}
// Where a sum over time lies among them.
__host__ __device__ inline int64_t scan_sum_row(int64_t time_sum, int64_t num_coeffs) {
  return time_sum < kScanChunk ? time_sum : time_sum + num_coeffs;
}

// What a block adds up. In shared memory each number is there for 32 lanes.
template <typename T>
struct ScanBlockSums {
  T* time_sums;  // [warps, kScanTimeSums]
  T* factors;    // [warps, 2 N]: state_grad, then moments
  T* products;   // [slab, N]: products of `slab` moments q with all p < N - q. A single warp needs none
  T* rows;       // the block's rows of sums, this lane's, `pitch` apart; null: nothing is to be summed
  int pitch;

  __device__ T& coeffs(int k) const { return rows[(kScanChunk + k) * pitch]; }
};
struct ScanBackwardShape {
  ScanWork work;
  int slab;
  LaunchShape launch;
};
// Two blocks a multiprocessor, so that one computes while the other waits: 255 registers a thread, and 96 KiB
// of shared memory, which one block gets on every GPU since Ampere, by fewer moments at a time, then by fewer
// warps. At most `most_blocks` blocks a tile: each leaves its sums.
constexpr int kScanBackwardBlocks = 2;
constexpr int64_t kScanBackwardBytes = 96 * 1024;
template <typename IO>
ScanBackwardShape scan_backward_shape(
    const ScanWork& work, int64_t num_coeffs, int warps, int64_t slab, int64_t most_blocks) {
  using T = typename IO::T;
  const auto bytes = [&] {
    const int64_t products = warps > 1 ? slab * num_coeffs : 0;
    return kScanLanes * static_cast<int64_t>(sizeof(T)) *
           (kScanTapRows + warps * (kScanTimeSums<IO> + 2 * num_coeffs) + products);
  };
  while (bytes() > kScanBackwardBytes && slab > 1) slab = ceil_div(slab, 2);
  while (bytes() > kScanBackwardBytes && warps > 1) warps = warps / 2;
  if (warps == 1) slab = num_coeffs;
  ScanBackwardShape shape{work, static_cast<int>(slab), {}};
  shape.work.row_groups = smaller(ceil_div(work.sequences, warps), larger(most_blocks / work.segments, 1));
  shape.launch = scan_shape(shape.work, warps);
  shape.launch.shared_bytes = static_cast<size_t>(bytes());
  return shape;
}

// products[q, p] for the moments first <= q < last, summed over the block's warps, which take them in turn.
template <typename T>
__device__ inline void add_products(int first, int last, int n, const ScanBlockSums<T>& sums) {
  const int warps = static_cast<int>(blockDim.y), lane = static_cast<int>(threadIdx.x);
  for (int entry = static_cast<int>(threadIdx.y); entry < (last - first) * n; entry += warps) {
    const int q = first + entry / n, p = entry % n;
    if (p + q >= n) continue;
    T sum = T(0);
    for (int i = 0; i < warps; ++i) {
      const T* factors = sums.factors + i * 2 * n * kScanLanes + lane;
      sum += factors[p * kScanLanes] * factors[(n + q) * kScanLanes];
    }
    sums.products[entry * kScanLanes + lane] = sum;
  }
}

// One chunk's part of the coefficients' gradient, by the whole block: sum over sequences of state_grad[p]
// moment[q], contracted with transfer[q, p, k]. Warps take the products in turn, then the coefficients.
template <typename T>
__device__ inline void add_coefficient_sums(
    const ScanTables<T>& tables, int64_t chunk, int n, int slab, const ScanBlockSums<T>& sums) {
  const int warps = static_cast<int>(blockDim.y), warp = static_cast<int>(threadIdx.y);
  const ScanChunkShape shape = tables.shapes[chunk];
  const int moments = static_cast<int>(shape.num_moments);
  const bool is_alone = warps == 1;
  const T* const mine = (is_alone ? sums.factors : sums.products) + threadIdx.x;
  __syncthreads();  // all factors are there, and the products of the chunk before have been read
  for (int first = 0; first < moments; first += slab) {
    const int last = first + slab < moments ? first + slab : moments;
    if (!is_alone) {
      add_products(first, last, n, sums);
      __syncthreads();
    }
    for (int k = warp; k < n; k += warps) {
      const T before = sums.coeffs(k);
      T sum = T(0);
      for (int q = first; q < last && q <= k; ++q) {
        const T* transfer = tables.contraction + (shape.transfer + scan_entries(n, q)) * n + k;
        const T* products = is_alone ? mine : mine + (q - first) * n * kScanLanes;
        T part = T(0);
        for (int p = 0; p <= k - q; ++p) part += transfer[p * n] * products[p * kScanLanes];
        sum += is_alone ? part * mine[(n + q) * kScanLanes] : part;
      }
      sums.coeffs(k) = before + sum;
    }
    if (last < moments) __syncthreads();  // before these products are written over
  }
}

// What a thread has of its sequence while it walks it backwards.
template <typename IO, int kN>
struct ScanBackward {
  using T = typename IO::T;

  const IO& io;
  const ScanThread<T, kN>& thread;
  const GradientMask wanted;
  T* const near_sums;  // shared, this thread's own: [32], 32 apart
  T* const factors;    // shared, this warp's: [2 N], 32 apart
  T state_grad[kN];    // of the state behind the chunk, then at its start
  T decay_sum;
  typename IO::Memory memory;

  // near_sums[lag] += sum_j dy[j] x[j - lag].
  __device__ void add_near_sums(const ScanChunk<T>& x, const ScanChunk<T>& dy) {
#pragma unroll
    for (int lag = 0; lag < kScanChunk; ++lag) {
      T sums[2] = {T(0), T(0)};
#pragma unroll
      for (int j = lag; j < kScanChunk; ++j) sums[j % 2] += dy[j] * x[j - lag];
      near_sums[lag * kScanLanes] += sums[0] + sums[1];
    }
  }

  __device__ void store_factors(int64_t chunk, const ScanChunk<T>& x) {
    store_state<kN>(factors, kScanLanes, state_grad, thread.coeffs());
    const auto halves = thread.halves_to_end(x);
    T* moments = factors + thread.coeffs() * kScanLanes;
    thread.for_each_moment(chunk, [&](int q, const T*) { moments[q * kScanLanes] = halves.moment(q); });
  }
  __device__ void clear_factors() {
    for (int i = 0; i < 2 * thread.coeffs(); ++i) factors[i * kScanLanes] = T(0);
  }

  // What the states behind the chunk say of its inputs.
  __device__ ScanChunk<T> input_grad_from_state(int64_t chunk) const {
    const int n = thread.coeffs();
    ScanHalves<T> halves = {};
    thread.for_each_moment(chunk, [&](int q, const T* entries) {
      T sum = T(0);
#pragma unroll kScanUnroll < kN>
      for (int p = 0; p < n - q; ++p) sum += entries[p * kScanLanes] * state_grad[p];
      halves.add(q, sum);
    });
    ScanChunk<T> dx;
    unrolled<kScanChunk>([&](int j) { dx[j] = thread.decay_to_end(j) * halves.value(j); });
    return dx;
  }

  // One chunk. `state` points at the state at its start, null for the sequence's first; is_last: no state
  // behind it.
  __device__ void walk(int64_t chunk, const ScanChunkRows& rows, bool is_last, const T* __restrict__ state) {
    const int n = thread.coeffs(), pitch = thread.channels.pitch;
    ScanChunk<T> y = {};
    if ((wanted.output || wanted.parameters) && state != nullptr) {
      T start[kN];
      load_state<kN>(state, pitch, start, n);
      thread.evaluate(chunk, start, y);
    }
    end_of_phase();
    const auto dy = io.load_output_grad(rows);
    unrolled<kScanChunk>([&](int j) { decay_sum -= static_cast<T>(j) * dy[j] * y[j]; });
    end_of_phase();
    const auto x = io.load_input(rows);
    if (wanted.output) {
      add_near(thread, x, y);
      io.store_gate_grad(memory, rows, y);
    }
    end_of_phase();
    if (wanted.parameters) {
      add_near_sums(x, dy);
      end_of_phase();
      is_last ? clear_factors() : store_factors(chunk, x);
    }
    end_of_phase();
    if (wanted.input || wanted.parameters) {
      y = is_last ? ScanChunk<T>{} : input_grad_from_state(chunk);
      unrolled<kScanChunk>([&](int j) { decay_sum -= static_cast<T>(kScanChunk - j) * x[j] * y[j]; });
    }
    end_of_phase();
    if (wanted.input) {
      add_near_backward(thread, dy, y);
      io.store_input_grad(memory, rows, y);
    }
    if (state == nullptr) return;
    end_of_phase();
    if (!is_last) {
      thread.restrict_backward(chunk, state_grad);
      if (wanted.parameters) {
        T sum = T(0);
#pragma unroll kScanUnroll < kN>
        for (int p = 0; p < n; ++p) sum += state[p * pitch] * state_grad[p];
        decay_sum -= static_cast<T>(kScanChunk) * sum;
      }
    }
    thread.evaluate_backward(chunk, dy, state_grad);
  }

  // Of decay, the near kernel's part included.
  __device__ T whole_decay_sum() const {
    T sum = decay_sum;
    for (int lag = 1; lag < kScanChunk; ++lag)
      sum -= static_cast<T>(lag) * thread.near(lag) * near_sums[lag * kScanLanes];
    return sum;
  }
};

// All gradients. states: at the start of every chunk but a sequence's first; carry: the state's gradient at
// the start of segments, null with one segment; partial [row_groups, segments, scan_sum_rows, pitch], null if
// nothing is to be summed: the near kernel's rows are gradients of its polynomial, before the decays.
template <typename IO, int kN>
__global__ void __launch_bounds__(kScanThreads, kScanBackwardBlocks) legendre_scan_backward(
    ScanInput<typename IO::T> input, IO io, GradientMask wanted, int slab,
    const typename IO::T* __restrict__ states, const typename IO::T* __restrict__ carry,
    typename IO::T* __restrict__ partial) {
  using T = typename IO::T;
  constexpr int kTimeSums = kScanTimeSums<IO>;
  const auto& [work, tables, channels] = input;
  const int warps = static_cast<int>(blockDim.y), warp = static_cast<int>(threadIdx.y);
  const int lane = static_cast<int>(threadIdx.x);
  HYENAREC_SHARED_MEMORY(T, taps);
  const ScanThread<T, kN> thread(input, taps);
  const ScanPlace& place = thread.place;
  const bool is_channel = thread.has_channel();
  const int n = thread.coeffs();

  T* const shared_sums = taps + kScanTapRows * kScanLanes;
  T* const factors = shared_sums + warps * kTimeSums * kScanLanes;
  const int64_t block = place.group * work.segments + place.segment;
  const ScanBlockSums<T> sums{
      shared_sums, factors, factors + warps * 2 * n * kScanLanes,
      wanted.parameters ? partial + block * scan_sum_rows<IO>(n) * channels.pitch + place.channel : nullptr,
      channels.pitch};
  T* const time_sums = sums.time_sums + warp * kTimeSums * kScanLanes + lane;
  for (int i = 0; i < kTimeSums; ++i) time_sums[i * kScanLanes] = T(0);
  for (int k = warp; k < n && wanted.parameters; k += warps) sums.coeffs(k) = T(0);

  ScanBackward<IO, kN> walker{io, thread, wanted, time_sums, factors + warp * 2 * n * kScanLanes + lane,
                              {}, T(0),   {}};
  // All warps of the block make the same steps: what they add up, they add up together.
  for (int64_t first = place.group * warps; first < work.sequences; first += work.row_groups * warps) {
    const ScanSequence sequence = work.sequence(first + warp);
    const ScanChunks mine = chunks_of_segment(work, sequence, place.segment);
    int64_t most = 0;  // chunks of the block's longest sequence
    for (int i = 0; i < warps; ++i) most = larger(most, chunks_of(work.sequence(first + i)));
    const int64_t segment_end = mine.first + work.segment_chunks;

    clear_state<kN>(walker.state_grad, n);
    const int64_t slot = thread.segment_slot(sequence);
    const bool has_successor = chunks_of(sequence) > segment_end;
    if (is_channel && has_successor) thread.load(carry, slot + 1, walker.state_grad);
    io.begin_segment(
        walker.memory, place.channel, place.segment > 0 ? slot : -1, has_successor ? slot + 1 : -1);
    for (int64_t chunk = smaller(segment_end, most) - 1; chunk >= mine.first; --chunk) {
      const bool is_last = chunk + 1 == chunks_of(sequence);
      if (is_channel && chunk < mine.last) {
        const T* state = thread.slot(states, work.slot(sequence, kScanChunk) + chunk);
        walker.walk(chunk, chunk_rows(place.channel, sequence, chunk), is_last, chunk > 0 ? state : nullptr);
      } else if (wanted.parameters) {
        walker.clear_factors();
      }
      if (wanted.parameters && chunk + 1 < most) add_coefficient_sums(tables, chunk, n, slab, sums);
    }
    if (is_channel && mine.first < mine.last) io.end_segment(walker.memory);
    for (int64_t i = 0; i < sequence.excess && is_channel && place.segment == 0; ++i)
      io.poison_gradients(place.channel, sequence.begin + sequence.length + i);
  }

  if (!wanted.parameters) return;
  time_sums[kScanDecaySum * kScanLanes] = walker.whole_decay_sum();
  io.store_sums(walker.memory, time_sums + kScanIOSums * kScanLanes);
  __syncthreads();
  for (int row = warp; row < kTimeSums; row += warps) {
    T sum = T(0);
    for (int i = 0; i < warps; ++i) sum += sums.time_sums[(i * kTimeSums + row) * kScanLanes + lane];
    if (row < kScanChunk) sum *= thread.decay_from_start(row);
    sums.rows[scan_sum_row(row, n) * channels.pitch] = sum;
  }
}

}  // namespace hyenarec
