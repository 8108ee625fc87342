// One channel of the Legendre scan in a thread's registers: a state and a chunk of values, and what the scan
// does with them (see ../tables.h).
#pragma once

#include "../math.h"
#include "layout.cuh"

namespace hyenarec {

constexpr int kScanMaxCoeffs = 128;  // of the instantiation for any number of them
constexpr int kScanUnrolledCoeffs = 33;
// More coefficients than that stay in local memory, in loops that aren't unrolled: correct, not fast.
template <int kN>
constexpr int kScanUnroll = kN <= kScanUnrolledCoeffs ? kN : 1;

// Coefficients, and the length of the tables' rows: constants where loops are unrolled.
template <int kN, typename T>
__device__ inline int coeffs_of(const ScanTables<T>& tables) {
  return kN <= kScanUnrolledCoeffs ? kN : tables.num_coeffs;
}
template <int kN, typename T>
__device__ inline int row_pitch_of(const ScanTables<T>& tables) {
  return kN <= kScanUnrolledCoeffs ? (kN + 3) / 4 * 4 : tables.pitch;
}

// P_k at the first half of a chunk's events, 2 j / (chunk - 1) - 1; the second half mirrors it, with a minus
// for odd k.
template <typename T>
struct ScanBasis {
  T value[kScanMaxCoeffs][kScanChunk / 2];
};
template <typename T>
constexpr ScanBasis<T> make_scan_basis() {
  ScanBasis<T> basis{};
  for (int j = 0; j < kScanChunk / 2; ++j) {
    const double place = 2.0 * j / (kScanChunk - 1) - 1.0;
    double current = 1.0, previous = 0.0;
    for (int k = 0; k < kScanMaxCoeffs; ++k) {
      basis.value[k][j] = static_cast<T>(current);
      const double next = legendre_next(k, place, current, previous);
      previous = current;
      current = next;
    }
  }
  return basis;
}
static __constant__ const ScanBasis<float> kScanBasisFloat = make_scan_basis<float>();
static __constant__ const ScanBasis<double> kScanBasisDouble = make_scan_basis<double>();
template <typename T>
__device__ inline T scan_basis(int k, int j) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return kScanBasisDouble.value[k][j];
  } else {
    return kScanBasisFloat.value[k][j];
  }
}

// Calls visit(p, row[p]) for first <= p < n.
template <int kN, typename T, typename Visit>
__device__ inline void for_each_of_row(const T* __restrict__ row, int first, int n, const Visit& visit) {
#pragma unroll kScanUnroll < kN>
  for (int block = first / 4; block < (n + 3) / 4; ++block) {
    const auto four = *reinterpret_cast<const AlignedVector<T, 4>*>(row + 4 * block);
    unrolled<4>([&](int i) {
      const int p = 4 * block + i;
      if (p >= first && p < n) visit(p, four.vector[i]);
    });
  }
}
// sum_{p >= first} row[p] state[p].
template <int kN, typename T>
__device__ inline T dot_row(const T* __restrict__ row, int first, const T (&state)[kN], int n) {
  T sum = T(0);
  for_each_of_row<kN>(row, first, n, [&](int p, T factor) { sum += factor * state[p]; });
  return sum;
}
// state[p] += row[p] factor for p >= first.
template <int kN, typename T>
__device__ inline void add_row(const T* __restrict__ row, int first, T factor, T (&state)[kN], int n) {
  for_each_of_row<kN>(row, first, n, [&](int p, T entry) { state[p] += entry * factor; });
}

// state = (1 + decay) (1 + change) state, change upper triangular, in place. Both are near zero where a state
// must keep its digits over hundreds of chunks: adding the differences does, multiplying by the sums doesn't.
template <int kN, typename T>
__device__ inline void restrict_state(
    const T* __restrict__ change, int pitch, T decay, T (&state)[kN], int n) {
#pragma unroll kScanUnroll < kN>
  for (int p = 0; p < n; ++p) {
    const T difference = dot_row<kN>(change + p * pitch, p, state, n);
    state[p] += difference + decay * (state[p] + difference);
  }
}
// The transposed of it, in place: from the last row up, each adds to those behind it.
template <int kN, typename T>
__device__ inline void restrict_state_backward(
    const T* __restrict__ change, int pitch, T decay, T (&state)[kN], int n) {
#pragma unroll kScanUnroll < kN>
  for (int p = n - 1; p >= 0; --p) add_row<kN>(change + p * pitch, p, state[p], state, n);
#pragma unroll kScanUnroll < kN>
  for (int p = 0; p < n; ++p) state[p] += decay * state[p];
}

// A state in memory, its numbers `pitch` apart.
template <int kN, typename T>
__device__ inline void load_state(const T* __restrict__ from, int pitch, T (&state)[kN], int n) {
#pragma unroll kScanUnroll < kN>
  for (int p = 0; p < n; ++p) state[p] = from[p * pitch];
}
template <int kN, typename T>
__device__ inline void store_state(T* __restrict__ to, int pitch, const T (&state)[kN], int n) {
#pragma unroll kScanUnroll < kN>
  for (int p = 0; p < n; ++p) to[p * pitch] = state[p];
}
template <int kN, typename T>
__device__ inline void clear_state(T (&state)[kN], int n) {
#pragma unroll kScanUnroll < kN>
  for (int p = 0; p < n; ++p) state[p] = T(0);
}

// A chunk's values as their even and odd parts about its middle: pairs j and 31 - j.
template <typename T>
struct ScanHalves {
  Vector<T, kScanChunk / 2> even, odd;

  __device__ T value(int j) const {
    return j < kScanChunk / 2 ? even[j] + odd[j] : even[kScanChunk - 1 - j] - odd[kScanChunk - 1 - j];
  }
  // += amount P_k.
  __device__ void add(int k, T amount) {
    unrolled<kScanChunk / 2>([&](int j) { (k % 2 == 0 ? even[j] : odd[j]) += scan_basis<T>(k, j) * amount; });
  }
  // sum_j P_k(j) value(j), when made of the values.
  __device__ T moment(int k) const {
    T sums[2] = {T(0), T(0)};
    unrolled<kScanChunk / 2>(
        [&](int j) { sums[j % 2] += scan_basis<T>(k, j) * (k % 2 == 0 ? even[j] : odd[j]); });
    return sums[0] + sums[1];
  }
};
// Of the values f(j).
template <typename T, typename Values>
__device__ inline ScanHalves<T> halves_of(const Values& f) {
  ScanHalves<T> halves;
  unrolled<kScanChunk / 2>([&](int j) {
    const T first = f(j), second = f(kScanChunk - 1 - j);
    halves.even[j] = first + second;
    halves.odd[j] = first - second;
  });
  return halves;
}

// A block's numbers of each channel in shared memory, [kScanTapRows, 32 lanes]: the kernel at the lags of a
// chunk, skip included, then exp(-decay j), j = 0 .. 32, then expm1(-32 decay).
constexpr int kScanChunkDecayChange = 2 * kScanChunk + 1;
constexpr int kScanTapRows = 2 * kScanChunk + 2;

// Makes them, by the whole block, whose warps take the rows in turn.
template <typename T>
__device__ inline void make_taps(
    const ScanParameters<T>& channels, const ScanWork& work, const ScanPlace& place, T* taps) {
  const bool is_channel = place.channel < work.channels;
  const T rate = is_channel ? channels.decay[place.channel] : T(0);
  const T* polynomials = channels.contracted + place.tile * channels.rows * kScanLanes + threadIdx.x;
  T* const mine = taps + threadIdx.x;
  for (int j = static_cast<int>(threadIdx.y); j <= kScanChunk; j += static_cast<int>(blockDim.y)) {
    const T decay_from_start = exp(-rate * static_cast<T>(j));
    mine[(kScanChunk + j) * kScanLanes] = decay_from_start;
    if (j == kScanChunk) {
      mine[kScanChunkDecayChange * kScanLanes] = expm1(-rate * static_cast<T>(kScanChunk));
    } else {
      const T skip = j == 0 && is_channel && channels.skip != nullptr ? channels.skip[place.channel] : T(0);
      mine[j * kScanLanes] = polynomials[j * kScanLanes] * decay_from_start + skip;
    }
  }
  __syncthreads();
}

// A thread's view of one channel: tables, parameters, place.
template <typename T, int kN>
struct ScanThread {
  const ScanWork& work;
  const ScanTables<T>& tables;
  const ScanParameters<T>& channels;
  const ScanPlace place;
  // This thread's of make_taps(), 32 apart: addresses that differ by constants, one register for all.
  const T* const taps;

  // The whole block makes its taps in shared memory, of kScanTapRows rows.
  __device__ ScanThread(const ScanInput<T>& input, T* block_taps)
      : work(input.work),
        tables(input.tables),
        channels(input.channels),
        place(scan_place(work)),
        taps(block_taps + threadIdx.x) {
    make_taps(channels, work, place, block_taps);
  }

  __device__ bool has_channel() const { return place.channel < work.channels; }
  __device__ int coeffs() const { return coeffs_of<kN>(tables); }
  __device__ int pitch() const { return row_pitch_of<kN>(tables); }
  __device__ T near(int lag) const { return taps[lag * kScanLanes]; }
  __device__ T decay_from_start(int j) const { return taps[(kScanChunk + j) * kScanLanes]; }
  // exp(-decay (32 - j)): what takes the chunk's event j to the next chunk's start.
  __device__ T decay_to_end(int j) const { return decay_from_start(kScanChunk - j); }
  // expm1(-32 decay)
  __device__ T chunk_decay_change() const { return taps[kScanChunkDecayChange * kScanLanes]; }

  // One of [slots, N, pitch of channels], this thread's channel.
  template <typename Number>
  __device__ Number* slot(Number* slots, int64_t index) const {
    return slots + index * coeffs() * channels.pitch + place.channel;
  }
  __device__ void load(const T* slots, int64_t index, T (&state)[kN]) const {
    load_state<kN>(slot(slots, index), channels.pitch, state, coeffs());
  }
  __device__ void store(T* slots, int64_t index, const T (&state)[kN]) const {
    store_state<kN>(slot(slots, index), channels.pitch, state, coeffs());
  }
  // A segment's slot, this thread's.
  __device__ int64_t segment_slot(const ScanSequence& sequence) const {
    return work.slot(sequence, work.segment_rows()) + place.segment;
  }

  // Calls visit(sequence, chunks) for this thread's sequences with their chunks in its segment.
  template <typename Visit>
  __device__ void for_each_segment(const Visit& visit) const {
    if (!has_channel()) return;
    for_each_sequence(work, place, [&](const ScanSequence& sequence) {
      visit(sequence, chunks_of_segment(work, sequence, place.segment));
    });
  }

  // Events of the chunk that the horizon cuts.
  __device__ int tail_rows() const { return static_cast<int>(tables.horizon % kScanChunk); }

  // y[j] = exp(-decay j) polynomial(j) of the state at the chunk's start; events beyond the horizon are left
  // alone.
  __device__ void evaluate(int64_t chunk, const T (&state)[kN], ScanChunk<T>& y) const {
    const int n = coeffs();
    if (chunk == tables.tail_chunk) {
      // Seldom, so short code: a loop over events, whose registers can't be indexed.
#pragma unroll 1
      for (int row = 0; row < tail_rows(); ++row) {
        const T value = decay_from_start(row) * dot_row<kN>(tables.tail + row * pitch(), 0, state, n);
        unrolled<kScanChunk>([&](int j) { y[j] = j == row ? value : y[j]; });
      }
      return;
    }
    ScanHalves<T> halves = {};
    const int terms = static_cast<int>(tables.shapes[chunk].num_local);
    const T* local = tables.local(chunk);
#pragma unroll kScanUnroll < kN>
    for (int k = 0; k < n; ++k) {
      if (k < terms) halves.add(k, dot_row<kN>(local + k * pitch(), k, state, n));
    }
    unrolled<kScanChunk>([&](int j) { y[j] = decay_from_start(j) * halves.value(j); });
  }
  // The transposed of it: state += what dy of the chunk's outputs says of the state at its start.
  __device__ void evaluate_backward(int64_t chunk, const ScanChunk<T>& dy, T (&state)[kN]) const {
    const int n = coeffs();
    if (chunk == tables.tail_chunk) {
#pragma unroll 1
      for (int row = 0; row < tail_rows(); ++row) {
        T value = T(0);
        unrolled<kScanChunk>([&](int j) { value = j == row ? dy[j] : value; });
        add_row<kN>(tables.tail + row * pitch(), 0, decay_from_start(row) * value, state, n);
      }
      return;
    }
    const auto halves = halves_of<T>([&](int j) { return decay_from_start(j) * dy[j]; });
    const int terms = static_cast<int>(tables.shapes[chunk].num_local);
    const T* local = tables.local(chunk);
#pragma unroll kScanUnroll < kN>
    for (int k = 0; k < n; ++k) {
      if (k < terms) add_row<kN>(local + k * pitch(), k, halves.moment(k), state, n);
    }
  }

  // Calls visit(q, entries) for the chunk's moments q < num_moments; entries[32 p] is the contracted transfer
  // from moment q to state p, p < N - q.
  template <typename Visit>
  __device__ void for_each_moment(int64_t chunk, const Visit& visit) const {
    const int n = coeffs();
    const ScanChunkShape shape = tables.shapes[chunk];
    const int moments = static_cast<int>(shape.num_moments);
    const T* entries =
        channels.contracted + (place.tile * channels.rows + shape.transfer) * kScanLanes + threadIdx.x;
#pragma unroll kScanUnroll < kN>
    for (int q = 0; q < n; ++q) {
      if (q < moments) visit(q, entries + scan_entries(n, q) * kScanLanes);
    }
  }
  // What moments are made of.
  __device__ ScanHalves<T> halves_to_end(const ScanChunk<T>& x) const {
    return halves_of<T>([&](int j) { return decay_to_end(j) * x[j]; });
  }
  // The state at the next chunk's start from that at this one's and the chunk's inputs.
  __device__ void advance(int64_t chunk, const ScanChunk<T>& x, T (&state)[kN]) const {
    const int n = coeffs();
    if (chunk > 0)
      restrict_state<kN>(tables.restriction_change(chunk), pitch(), chunk_decay_change(), state, n);
    const auto halves = halves_to_end(x);
    for_each_moment(chunk, [&](int q, const T* entries) {
      const T moment = halves.moment(q);
#pragma unroll kScanUnroll < kN>
      for (int p = 0; p < n - q; ++p) state[p] += entries[p * kScanLanes] * moment;
    });
  }
  // The transposed of its restriction, where there is one.
  __device__ void restrict_backward(int64_t chunk, T (&state)[kN]) const {
    restrict_state_backward<kN>(
        tables.restriction_change(chunk), pitch(), chunk_decay_change(), state, coeffs());
  }
};

// y[j] += sum_lag near[lag] x[j - lag], and its transposed y[j] += sum_lag near[lag] x[j + lag].
template <typename Thread, typename T>
__device__ inline void add_near(const Thread& thread, const ScanChunk<T>& x, ScanChunk<T>& y) {
#pragma unroll
  for (int lag = 0; lag < kScanChunk; ++lag) {
    const T tap = thread.near(lag);
#pragma unroll
    for (int j = lag; j < kScanChunk; ++j) y[j] += tap * x[j - lag];
  }
}
template <typename Thread, typename T>
__device__ inline void add_near_backward(const Thread& thread, const ScanChunk<T>& x, ScanChunk<T>& y) {
#pragma unroll
  for (int lag = 0; lag < kScanChunk; ++lag) {
    const T tap = thread.near(lag);
#pragma unroll
    for (int j = lag; j < kScanChunk; ++j) y[j - lag] += tap * x[j];
  }
}

}  // namespace hyenarec
