// Device code of the linear-time Legendre scan (see ../legendre_tables.h), shared by legendre_conv and
// hyena_mixer.
//
// A thread owns one channel of one sequence and walks its chunks of 32 events in order; the lanes of a warp
// lie along channels, so each row of a chunk is one coalesced access. The chunk and the state stay in
// registers: the near part is a triangular Toeplitz product from registers, 528 multiply-adds for 32 loaded
// taps; the polynomials at the chunk's events are constants of the program, symmetric or antisymmetric about
// its middle, so that moments and evaluation cost 16 multiply-adds a term. Warps don't talk to each other on
// the way forward. A block's warps hold different sequences and the same channels: what depends on chunk and
// channel, the coefficients contracted with the transfer table, is read from the second-level cache by the
// first of them and from the first-level cache by the others.
//
// Two strategies, one code. Many sequences: a warp walks a whole sequence. Few and long ones: a sequence is
// cut into segments of equal numbers of chunks, each walked by a warp of its own, after two small launches
// have found the state at each segment's start: every segment from a zero state (legendre_scan_carry), then
// the segments of a sequence one after another (legendre_scan_combine). That reads the inputs once more.
// The adjoint runs the same way in the other direction.
//
// Cost an element, N = 17, horizon 1,024 (9 moments and 9 local terms of 17), multiply-adds: near 16.5, moments
// and evaluation 9, restriction and local terms 8.4, transfer 3.7, fades 3; together 41, so 21 microseconds for
// 16.7 million elements at 33 million million a second. Bytes of the same elements, three inputs and one
// output: 62 microseconds in float32, 31 in 16 bits, at 4.3 TB/s. Backward is about three times the
// arithmetic for 7/4 of the bytes, plus the states (N / 32 of a float32 activation, written and read) and a
// second look at the inputs. Expected besides, not measured: loads that hit the first-level cache, about 15 numbers
// an element (tables, taps, fades), 35 microseconds at 128 bytes a clock and multiprocessor, and instructions, about
// 2,300 for a warp's chunk, 42 microseconds: near the floor in float32, about 1.5 times it in 16 bits. Tensor cores are not used: in float32 the bytes are the floor already, and the
// near part, their only large product, would need three tf32 products to stay within 1e-5.
#pragma once

#include "../legendre_math.h"
#include "device.cuh"

namespace hyenarec {

constexpr int kScanChunk = 32;
constexpr int kScanLanes = 32;     // channels of a warp
constexpr int kScanThreads = 128;  // a sweep's block, at most: four sequences
// Blocks a multiprocessor holds at least: 168 registers a thread. With 128 the compiler spills 0.3 to 1 KB a thread,
// for all threads together as much as the first-level cache holds.
constexpr int kScanBlocks = 3;
constexpr int kScanTableThreads = 256;  // a block that makes or adds up tables
constexpr int kScanMaxCoeffs = 128;     // of the instantiation for any number of them
constexpr int kScanUnrolledCoeffs = 33;
// More coefficients than that stay in local memory, in loops that aren't unrolled: correct, not fast.
template <int kN>
constexpr int kScanUnroll = kN <= kScanUnrolledCoeffs ? kN : 1;

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

// What depends on horizon and number of coefficients only. Rows of matrices are `pitch` numbers long, a
// multiple of 4, for vector loads.
struct ScanChunkShape {
  int64_t num_local, num_moments;
  int64_t transfer;  // where its numbers start
};
template <typename T>
struct ScanTables {
  int num_coeffs, pitch;
  int64_t horizon;
  int64_t tail_chunk;            // the chunk that the horizon cuts; -1 if it cuts none
  const ScanChunkShape* shapes;  // [chunks]
  const T* matrices;             // [chunks, 2, N, pitch]: local, then restriction_change
  const T* transfer;
  const T* tail;   // [32, pitch]
  const T* jumps;  // [segments, N, pitch]: restriction_change from one segment's start to the next one's

  __device__ const T* local(int64_t chunk) const { return matrices + 2 * chunk * num_coeffs * pitch; }
  __device__ const T* restriction_change(int64_t chunk) const {
    return matrices + (2 * chunk + 1) * num_coeffs * pitch;
  }
};

inline int64_t scan_pitch(int64_t num_coeffs) { return ceil_div(num_coeffs, 4) * 4; }
// Entries (q, p), p + q < N, of q < moments: the numbers of a channel's contracted transfer matrix.
__host__ __device__ inline int64_t scan_entries(int64_t num_coeffs, int64_t moments) {
  return moments * num_coeffs - moments * (moments - 1) / 2;
}

// What depends on the parameters: made by legendre_scan_prepare and legendre_scan_contract. `pitch` channels
// are the channels rounded up to whole warps; those beyond are zero.
template <typename T>
struct ScanChannels {
  int pitch;
  const T* near;  // [tiles, 32, 32 lanes]: the kernel at the lags of a chunk, skip included
  const T*
      fades;  // [tiles, 35, 32]: exp(-decay j), j = 0 .. 32, then expm1 of a chunk's and a segment's decay
  const T* transfers;  // [chunks, tiles, entries, 32]
  int64_t entries;     // at most: of chunks with the most moments

  __device__ const T* transfer(int64_t chunk, int64_t tile, int lane) const {
    return transfers + (chunk * (pitch / kScanLanes) + tile) * entries * kScanLanes + lane;
  }
};
constexpr int kScanChunkDecay = kScanChunk + 1, kScanSegmentDecay = kScanChunk + 2;
constexpr int kScanFades = kScanChunk + 3;

// The rows of a sequence. Values of offsets aren't checked on CUDA: whatever they are, the rows exist, and
// there are at most `horizon` of them; `excess` says how many a sequence that is too long has more.
struct ScanSequence {
  int64_t number, begin, length, excess;
};
struct ScanWork {
  int64_t rows, length, horizon;
  const int64_t* offsets;  // null: padded, each `length` rows
  const int64_t* order;    // sequences, longest first; null: as they come
  int64_t sequences;
  int64_t channels;
  int64_t segment_chunks, segments;
  int64_t row_groups;  // of blocks: each takes every row_groups-th group of as many sequences as it has warps

  __device__ ScanSequence sequence(int64_t place) const {
    if (place >= sequences) return {0, 0, 0, 0};
    if (offsets == nullptr) return {place, place * length, length, 0};
    const int64_t number = order == nullptr ? place : order[place];
    const int64_t begin = smaller(larger(offsets[number], 0), rows);
    const int64_t whole = larger(smaller(offsets[number + 1], rows) - begin, 0);
    return {number, begin, smaller(whole, horizon), whole - smaller(whole, horizon)};
  }
  // Where a sequence's first chunk (unit = 32) or segment is kept; the next ones follow. No two sequences'
  // overlap, and scan_slots() bounds them.
  __device__ int64_t slot(const ScanSequence& sequence, int64_t unit) const {
    return sequence.begin / unit + sequence.number;
  }
};
inline int64_t scan_slots(int64_t rows, int64_t sequences, int64_t unit) { return rows / unit + sequences; }

__device__ inline int64_t chunks_of(const ScanSequence& sequence) {
  return ceil_div(sequence.length, kScanChunk);
}
// Rows of a chunk.
__device__ inline int chunk_rows(const ScanSequence& sequence, int64_t chunk) {
  return static_cast<int>(smaller(sequence.length - chunk * kScanChunk, kScanChunk));
}

// A thread's channel and its block's first sequences and segment. Tiles of channels lie next to each other,
// so that neighbouring blocks read neighbouring bytes.
struct ScanPlace {
  int64_t tile, channel, segment, group;
};
__device__ inline ScanPlace scan_place(const ScanWork& work) {
  const int64_t tiles = ceil_div(work.channels, kScanLanes);
  const int64_t tile = blockIdx.x % tiles, rest = blockIdx.x / tiles;
  return {tile, tile * kScanLanes + threadIdx.x, rest % work.segments, rest / work.segments};
}
inline LaunchShape scan_shape(const ScanWork& work, int warps) {
  const int64_t tiles = ceil_div(work.channels, kScanLanes);
  return {tiles * work.segments * work.row_groups, dim3(kScanLanes, static_cast<unsigned int>(warps)), 0};
}
// Calls visit(sequence) for this thread's sequences.
template <typename Visit>
__device__ inline void for_each_sequence(const ScanWork& work, const ScanPlace& place, const Visit& visit) {
  const int64_t stride = work.row_groups * blockDim.y;
  for (int64_t at = place.group * blockDim.y + threadIdx.y; at < work.sequences; at += stride)
    visit(work.sequence(at));
}

// sum_{p >= first} row[p] state[p].
template <int kN, typename T>
__device__ inline T dot_row(const T* __restrict__ row, int first, const T (&state)[kN], int n) {
  T sum = T(0);
#pragma unroll kScanUnroll < kN>
  for (int block = first / 4; block < (n + 3) / 4; ++block) {
    const auto four = *reinterpret_cast<const Vector<T, 4>*>(row + 4 * block);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int p = 4 * block + i;
      if (p >= first && p < n) sum += four.value[i] * state[p];
    }
  }
  return sum;
}
// state[p] += row[p] factor for p >= first.
template <int kN, typename T>
__device__ inline void add_row(const T* __restrict__ row, int first, T factor, T (&state)[kN], int n) {
#pragma unroll kScanUnroll < kN>
  for (int block = first / 4; block < (n + 3) / 4; ++block) {
    const auto four = *reinterpret_cast<const Vector<T, 4>*>(row + 4 * block);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int p = 4 * block + i;
      if (p >= first && p < n) state[p] += four.value[i] * factor;
    }
  }
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
__device__ inline void transposed_restrict(
    const T* __restrict__ change, int pitch, T decay, T (&state)[kN], int n) {
#pragma unroll kScanUnroll < kN>
  for (int p = n - 1; p >= 0; --p) add_row<kN>(change + p * pitch, p, state[p], state, n);
#pragma unroll kScanUnroll < kN>
  for (int p = 0; p < n; ++p) state[p] += decay * state[p];
}

// A chunk's values as their even and odd parts about its middle: pairs j and 31 - j.
template <typename T>
struct ScanHalves {
  T even[kScanChunk / 2], odd[kScanChunk / 2];

  __device__ void clear() {
#pragma unroll
    for (int j = 0; j < kScanChunk / 2; ++j) even[j] = odd[j] = T(0);
  }
  // From the values f(j) of the whole chunk.
  template <typename Values>
  __device__ void take(const Values& f) {
#pragma unroll
    for (int j = 0; j < kScanChunk / 2; ++j) {
      const T first = f(j), second = f(kScanChunk - 1 - j);
      even[j] = first + second;
      odd[j] = first - second;
    }
  }
  __device__ T value(int j) const {
    return j < kScanChunk / 2 ? even[j] + odd[j] : even[kScanChunk - 1 - j] - odd[kScanChunk - 1 - j];
  }
  // += amount P_k.
  __device__ void add(int k, T amount) {
#pragma unroll
    for (int j = 0; j < kScanChunk / 2; ++j) (k % 2 == 0 ? even[j] : odd[j]) += scan_basis<T>(k, j) * amount;
  }
  // sum_j P_k(j) value(j), when taken from the values.
  __device__ T moment(int k) const {
    T sums[2] = {T(0), T(0)};
#pragma unroll
    for (int j = 0; j < kScanChunk / 2; ++j)
      sums[j % 2] += scan_basis<T>(k, j) * (k % 2 == 0 ? even[j] : odd[j]);
    return sums[0] + sums[1];
  }
};

// A thread's view of one channel: tables, parameters, place.
template <typename T, int kN>
struct ScanThread {
  const ScanTables<T>& tables;
  const ScanChannels<T>& channels;
  int64_t tile, channel;
  // This thread's in ScanChannels, 32 apart: addresses that differ by constants, one register for all.
  const T* const taps;
  const T* const fades;

  __device__ ScanThread(
      const ScanTables<T>& tables_, const ScanChannels<T>& channels_, int64_t tile_, int64_t channel_)
      : tables(tables_),
        channels(channels_),
        tile(tile_),
        channel(channel_),
        taps(channels_.near + tile_ * kScanChunk * kScanLanes + threadIdx.x),
        fades(channels_.fades + tile_ * kScanFades * kScanLanes + threadIdx.x) {}

  // Length of the tables' rows.
  __device__ int pitch() const { return kN <= kScanUnrolledCoeffs ? (kN + 3) / 4 * 4 : tables.pitch; }
  __device__ int coeffs() const { return kN <= kScanUnrolledCoeffs ? kN : tables.num_coeffs; }
  __device__ T near(int lag) const { return taps[lag * kScanLanes]; }
  __device__ T fade(int j) const { return fades[j * kScanLanes]; }
  // exp(-decay (32 - j)): what takes the chunk's event j to the next chunk's start.
  __device__ T lift(int j) const { return fade(kScanChunk - j); }

  // Events of the chunk that the horizon cuts.
  __device__ int tail_rows() const { return static_cast<int>(tables.horizon % kScanChunk); }

  // y[j] = fade_j polynomial(j) of the state at the chunk's start; events beyond the horizon are left alone.
  __device__ void evaluate(int64_t chunk, const T (&state)[kN], T (&y)[kScanChunk]) const {
    const int n = coeffs();
    if (chunk == tables.tail_chunk) {
      // Seldom, so short code: a loop over events, whose registers can't be indexed.
#pragma unroll 1
      for (int row = 0; row < tail_rows(); ++row) {
        const T value = fade(row) * dot_row<kN>(tables.tail + row * pitch(), 0, state, n);
#pragma unroll
        for (int j = 0; j < kScanChunk; ++j) y[j] = j == row ? value : y[j];
      }
      return;
    }
    ScanHalves<T> halves;
    halves.clear();
    const int terms = static_cast<int>(tables.shapes[chunk].num_local);
    const T* local = tables.local(chunk);
#pragma unroll kScanUnroll < kN>
    for (int k = 0; k < n; ++k) {
      if (k < terms) halves.add(k, dot_row<kN>(local + k * pitch(), k, state, n));
    }
#pragma unroll
    for (int j = 0; j < kScanChunk; ++j) y[j] = fade(j) * halves.value(j);
  }
  // The transposed of it: state += what dy of the chunk's outputs says of the state at its start.
  __device__ void evaluate_adjoint(int64_t chunk, const T (&dy)[kScanChunk], T (&state)[kN]) const {
    const int n = coeffs();
    if (chunk == tables.tail_chunk) {
#pragma unroll 1
      for (int row = 0; row < tail_rows(); ++row) {
        T value = T(0);
#pragma unroll
        for (int j = 0; j < kScanChunk; ++j) value = j == row ? dy[j] : value;
        add_row<kN>(tables.tail + row * pitch(), 0, fade(row) * value, state, n);
      }
      return;
    }
    ScanHalves<T> halves;
    halves.take([&](int j) { return fade(j) * dy[j]; });
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
    const int moments = static_cast<int>(tables.shapes[chunk].num_moments);
    const T* entries = channels.transfer(chunk, tile, threadIdx.x);
#pragma unroll kScanUnroll < kN>
    for (int q = 0; q < n; ++q) {
      if (q < moments) visit(q, entries + scan_entries(n, q) * kScanLanes);
    }
  }
  // The state at the next chunk's start from that at this one's and the chunk's inputs.
  __device__ void advance(int64_t chunk, const T (&x)[kScanChunk], T (&state)[kN]) const {
    const int n = coeffs();
    if (chunk > 0)
      restrict_state<kN>(tables.restriction_change(chunk), pitch(), fade(kScanChunkDecay), state, n);
    ScanHalves<T> halves;
    halves.take([&](int j) { return lift(j) * x[j]; });
    for_each_moment(chunk, [&](int q, const T* entries) {
      const T moment = halves.moment(q);
#pragma unroll kScanUnroll < kN>
      for (int p = 0; p < n - q; ++p) state[p] += entries[p * kScanLanes] * moment;
    });
  }
};

// y[j] += sum_lag near[lag] x[j - lag], and its transposed y[j] += sum_lag near[lag] x[j + lag].
template <typename Thread, typename T>
__device__ inline void add_near(const Thread& thread, const T (&x)[kScanChunk], T (&y)[kScanChunk]) {
#pragma unroll
  for (int lag = 0; lag < kScanChunk; ++lag) {
    const T tap = thread.near(lag);
#pragma unroll
    for (int j = lag; j < kScanChunk; ++j) y[j] += tap * x[j - lag];
  }
}
template <typename Thread, typename T>
__device__ inline void add_near_adjoint(const Thread& thread, const T (&x)[kScanChunk], T (&y)[kScanChunk]) {
#pragma unroll
  for (int lag = 0; lag < kScanChunk; ++lag) {
    const T tap = thread.near(lag);
#pragma unroll
    for (int j = lag; j < kScanChunk; ++j) y[j - lag] += tap * x[j];
  }
}

// Numbers a slot (of a chunk or a segment) holds: [N, pitch of channels].
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

// --- the parameters, once a call -----------------------------------------------------------------------------

// near and fades of ScanChannels. coeffs [channels, given] (given <= num_coeffs), skip may be null.
template <typename T>
__global__ void __launch_bounds__(kScanTableThreads) legendre_scan_prepare(
    int64_t channels,
    int64_t pitch,
    int64_t given,
    int64_t horizon,
    int64_t segment_chunks,
    const T* __restrict__ coeffs,
    const T* __restrict__ decay,
    const T* __restrict__ skip,
    T* __restrict__ near,
    T* __restrict__ fades) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t lag = number / pitch, channel = number % pitch;
  if (lag >= kScanFades) return;
  const int64_t tile = channel / kScanLanes, lane = channel % kScanLanes;
  const int64_t fade_place = (tile * kScanFades + lag) * kScanLanes + lane;
  const bool real = channel < channels;
  const double rate = real ? static_cast<double>(decay[channel]) : 0.0;
  if (lag > kScanChunk) {
    const int64_t steps = kScanChunk * (lag == kScanSegmentDecay ? segment_chunks : 1);
    fades[fade_place] = static_cast<T>(expm1(-rate * static_cast<double>(steps)));
    return;
  }
  const double fade = exp(-rate * static_cast<double>(lag));
  fades[fade_place] = static_cast<T>(fade);
  if (lag == kScanChunk) return;
  double sum = 0;
  if (real && lag < horizon) {
    const double place = legendre_position(lag, horizon);
    double current = 1.0, previous = 0.0;
    for (int64_t k = 0; k < given; ++k) {
      sum += static_cast<double>(coeffs[channel * given + k]) * current;
      const double next = legendre_next(k, place, current, previous);
      previous = current;
      current = next;
    }
    sum *= fade;
  }
  if (real && lag == 0 && skip != nullptr) sum += static_cast<double>(skip[channel]);
  near[(tile * kScanChunk + lag) * kScanLanes + lane] = static_cast<T>(sum);
}
inline LaunchShape scan_prepare_shape(int64_t pitch) {
  return {ceil_div(kScanFades * pitch, kScanTableThreads), dim3(kScanTableThreads), 0};
}

// transfers[chunk, tile, (q, p), lane] = sum_{n >= p + q} coeffs[channel, n] transfer[q, p, n]: once a channel
// and chunk, for all sequences. A warp takes every eighth entry of one chunk and tile. Chunks that no sequence
// passes through are left out, which only the GPU knows of packed ones: the first in `order` is the longest.
template <typename T>
__global__ void __launch_bounds__(kScanTableThreads) legendre_scan_contract(
    ScanWork work,
    ScanTables<T> tables,
    int64_t tiles,
    int64_t entries,
    int64_t given,
    const T* __restrict__ coeffs,
    T* __restrict__ transfers) {
  const int64_t chunk = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  if ((work.offsets == nullptr || work.order != nullptr) &&
      work.sequence(0).length <= (chunk + 1) * kScanChunk)
    return;
  const int64_t channel = tile * kScanLanes + threadIdx.x;
  const int64_t n = tables.num_coeffs;
  const ScanChunkShape shape = tables.shapes[chunk];
  const T* row = tables.transfer + shape.transfer;
  T* target = transfers + blockIdx.x * entries * kScanLanes + threadIdx.x;
  int64_t entry = 0;
  for (int64_t q = 0; q < shape.num_moments; ++q) {
    for (int64_t p = 0; p < n - q; ++p, ++entry) {
      if (entry % blockDim.y == threadIdx.y) {
        T sum = T(0);
        for (int64_t k = p + q; k < smaller(given, n); ++k) {
          if (channel < work.channels) sum += coeffs[channel * given + k] * row[k - p - q];
        }
        target[entry * kScanLanes] = sum;
      }
      row += n - p - q;
    }
  }
}
inline LaunchShape scan_contract_shape(int64_t tiles, int64_t chunks) {
  return {tiles * chunks, dim3(kScanLanes, kScanTableThreads / kScanLanes), 0};
}

// --- sweeps --------------------------------------------------------------------------------------------------
//
// `Source` knows the activations. It has Source::Scalar and, each for one channel of the `rows` <= 32 rows from
// `row` on, T = accumulate_t<Scalar>; values of other rows are zero:
//   load_input(channel, row, before, rows, x)   z, what is convolved; `before` rows of the same sequence
//                                               precede `row`
//   load_gradient(..., dy)                      the gradient of the convolution's output, through the gate
//   gate_and_store(..., y)                      y times the gate to the output
//   poison_output(channel, row)                 NaN to the output, for a row beyond the horizon

// The chunks of a segment that a sequence has.
struct ScanChunks {
  int64_t first, last;
};
__device__ inline ScanChunks chunks_of_segment(
    const ScanWork& work, const ScanSequence& sequence, int64_t segment) {
  const int64_t first = segment * work.segment_chunks;
  return {first, smaller(first + work.segment_chunks, chunks_of(sequence))};
}

// The states at the start of segments, kept in [scan_slots(.. segment), N, pitch]. Chunks that are walked:
// those of a segment which has a successor, from a zero state.
template <typename Source, int kN>
__global__ void __launch_bounds__(kScanThreads, kScanBlocks) legendre_scan_carry(
    ScanWork work,
    ScanTables<accumulate_t<typename Source::Scalar>> tables,
    ScanChannels<accumulate_t<typename Source::Scalar>> channels,
    Source source,
    accumulate_t<typename Source::Scalar>* __restrict__ carry) {
  using T = accumulate_t<typename Source::Scalar>;
  const ScanPlace place = scan_place(work);
  if (place.channel >= work.channels) return;
  const ScanThread<T, kN> thread{tables, channels, place.tile, place.channel};
  const int n = thread.coeffs();
  for_each_sequence(work, place, [&](const ScanSequence& sequence) {
    const ScanChunks chunks = chunks_of_segment(work, sequence, place.segment);
    if (chunks_of(sequence) <= chunks.first + work.segment_chunks) return;
    T state[kN], x[kScanChunk];
    clear_state<kN>(state, n);
    for (int64_t chunk = chunks.first; chunk < chunks.last; ++chunk) {
      const int64_t row = sequence.begin + chunk * kScanChunk;
      source.load_input(place.channel, row, chunk * kScanChunk, kScanChunk, x);
      thread.advance(chunk, x, state);
    }
    const int64_t slot = work.slot(sequence, work.segment_chunks * kScanChunk) + place.segment + 1;
    store_state<kN>(carry + slot * n * channels.pitch + place.channel, channels.pitch, state, n);
  });
}

// The same for the adjoint: what the outputs from a segment's start on, within it, say of the state there.
template <typename Source, int kN>
__global__ void __launch_bounds__(kScanThreads, kScanBlocks) legendre_scan_adjoint_carry(
    ScanWork work,
    ScanTables<accumulate_t<typename Source::Scalar>> tables,
    ScanChannels<accumulate_t<typename Source::Scalar>> channels,
    Source source,
    accumulate_t<typename Source::Scalar>* __restrict__ carry) {
  using T = accumulate_t<typename Source::Scalar>;
  const ScanPlace place = scan_place(work);
  if (place.channel >= work.channels || place.segment == 0) return;
  const ScanThread<T, kN> thread{tables, channels, place.tile, place.channel};
  const int n = thread.coeffs();
  for_each_sequence(work, place, [&](const ScanSequence& sequence) {
    const ScanChunks chunks = chunks_of_segment(work, sequence, place.segment);
    if (chunks.first >= chunks.last) return;
    T adjoint[kN], dy[kScanChunk];
    clear_state<kN>(adjoint, n);
    for (int64_t chunk = chunks.last - 1; chunk >= chunks.first; --chunk) {
      const int64_t row = sequence.begin + chunk * kScanChunk;
      if (chunk + 1 < chunks.last)
        transposed_restrict<kN>(
            tables.restriction_change(chunk), thread.pitch(), thread.fade(kScanChunkDecay), adjoint, n);
      source.load_gradient(place.channel, row, chunk * kScanChunk, chunk_rows(sequence, chunk), dy);
      thread.evaluate_adjoint(chunk, dy, adjoint);
    }
    const int64_t slot = work.slot(sequence, work.segment_chunks * kScanChunk) + place.segment;
    store_state<kN>(carry + slot * n * channels.pitch + place.channel, channels.pitch, adjoint, n);
  });
}

// carry of each segment alone -> of all segments before it (kAdjoint: from it on). A warp for a sequence and
// 32 channels.
template <typename T, int kN, bool kAdjoint>
__global__ void __launch_bounds__(kScanThreads) legendre_scan_combine(
    ScanWork work, ScanTables<T> tables, ScanChannels<T> channels, T* __restrict__ carry) {
  const ScanPlace place = scan_place(work);
  if (place.channel >= work.channels || place.segment > 0) return;
  const ScanThread<T, kN> thread{tables, channels, place.tile, place.channel};
  const int n = thread.coeffs();
  const T decay = thread.fade(kScanSegmentDecay);
  for_each_sequence(work, place, [&](const ScanSequence& sequence) {
    const int64_t segments = ceil_div(chunks_of(sequence), work.segment_chunks);
    T* slots =
        carry + work.slot(sequence, work.segment_chunks * kScanChunk) * n * channels.pitch + place.channel;
    T state[kN];
    clear_state<kN>(state, n);
    for (int64_t i = 1; i < segments; ++i) {
      const int64_t segment = kAdjoint ? segments - i : i;
      // The state before segment 1 is zero, and so is the adjoint behind the last.
      if (i > 1) {
        const T* jump = tables.jumps + (kAdjoint ? segment : segment - 1) * n * thread.pitch();
        if (kAdjoint) {
          transposed_restrict<kN>(jump, thread.pitch(), decay, state, n);
        } else {
          restrict_state<kN>(jump, thread.pitch(), decay, state, n);
        }
      }
      T* slot = slots + segment * n * channels.pitch;
#pragma unroll kScanUnroll < kN>
      for (int p = 0; p < n; ++p) state[p] += slot[p * channels.pitch];
      store_state<kN>(slot, channels.pitch, state, n);
    }
  });
}

// The output; or with kStates instead the states at the start of chunks, for the backward sweep, into
// [scan_slots(.. 32), N, pitch].
template <typename Source, int kN, bool kStates>
__global__ void __launch_bounds__(kScanThreads, kScanBlocks) legendre_scan_forward(
    ScanWork work,
    ScanTables<accumulate_t<typename Source::Scalar>> tables,
    ScanChannels<accumulate_t<typename Source::Scalar>> channels,
    Source source,
    const accumulate_t<typename Source::Scalar>* __restrict__ carry,
    accumulate_t<typename Source::Scalar>* __restrict__ states) {
  using T = accumulate_t<typename Source::Scalar>;
  const ScanPlace place = scan_place(work);
  if (place.channel >= work.channels) return;
  const ScanThread<T, kN> thread{tables, channels, place.tile, place.channel};
  const int n = thread.coeffs();
  for_each_sequence(work, place, [&](const ScanSequence& sequence) {
    const ScanChunks chunks = chunks_of_segment(work, sequence, place.segment);
    T state[kN], x[kScanChunk], y[kScanChunk];
    clear_state<kN>(state, n);
    if (place.segment > 0 && chunks.first < chunks.last) {
      const int64_t slot = work.slot(sequence, work.segment_chunks * kScanChunk) + place.segment;
      load_state<kN>(carry + slot * n * channels.pitch + place.channel, channels.pitch, state, n);
    }
    for (int64_t chunk = chunks.first; chunk < chunks.last; ++chunk) {
      const int64_t before = chunk * kScanChunk, row = sequence.begin + before;
      const int rows = chunk_rows(sequence, chunk);
      const bool is_last = chunk + 1 == chunks_of(sequence);
      if (kStates && chunk > 0) {
        const int64_t slot = work.slot(sequence, kScanChunk) + chunk;
        store_state<kN>(states + slot * n * channels.pitch + place.channel, channels.pitch, state, n);
      }
      if (kStates && is_last) break;
      source.load_input(place.channel, row, before, rows, x);
      if (!kStates) {
#pragma unroll
        for (int j = 0; j < kScanChunk; ++j) y[j] = T(0);
        if (chunk > 0) thread.evaluate(chunk, state, y);
        add_near(thread, x, y);
        source.gate_and_store(place.channel, row, before, rows, y);
      }
      if (!is_last) thread.advance(chunk, x, state);
    }
    if (!kStates && place.segment == 0) {
      for (int64_t i = 0; i < sequence.excess; ++i)
        source.poison_output(place.channel, sequence.begin + sequence.length + i);
    }
  });
}

}  // namespace hyenarec
