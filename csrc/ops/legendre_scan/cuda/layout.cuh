// How the Legendre scan's tables, parameters and sequences lie in memory, and which of them a thread has.
// Shared by the scan's sweeps and legendre_step.
#pragma once

#include "../../common/cuda/device.cuh"

namespace hyenarec {

constexpr int kScanChunk = 32;
static_assert(kScanChunk % 4 == 0, "a chunk has two halves, whose sums are made by twos");
constexpr int kScanLanes = 32;  // channels of a warp: a tile

// What depends on horizon and number of coefficients only. Rows of matrices are `pitch` numbers long, a
// multiple of 4, for vector loads.
struct ScanChunkShape {
  int64_t num_local, num_moments;
  int64_t transfer;  // the chunk's first row of `contraction`
};
template <typename T>
struct ScanTables {
  int num_coeffs, pitch;
  int64_t horizon;
  int64_t tail_chunk;            // the chunk that the horizon cuts; -1 if it cuts none
  const ScanChunkShape* shapes;  // [chunks]
  const T* matrices;             // [chunks, 2, N, pitch]: local, then restriction_change
  // [rows, N]: times a channel's coeffs, they are what the scan needs of its kernel. First, for each lag of a
  // chunk, the polynomials there; zeros from the horizon on. Then, for each chunk, (q, p) of scan_entries()
  // in order: transfer[q, p, n], zero for n < p + q.
  const T* contraction;
  const T* tail;   // [32, pitch]
  const T* jumps;  // [segments, N, pitch]: restriction_change from one segment's start to the next one's

  __device__ const T* local(int64_t chunk) const { return matrices + 2 * chunk * num_coeffs * pitch; }
  __device__ const T* restriction_change(int64_t chunk) const {
    return matrices + (2 * chunk + 1) * num_coeffs * pitch;
  }
};

inline int64_t scan_pitch(int64_t num_coeffs) { return ceil_div(num_coeffs, 4) * 4; }
// Entries (q, p), p + q < N, of q < moments, q by q: the numbers of a channel's contracted transfer matrix.
__host__ __device__ inline int64_t scan_entries(int64_t num_coeffs, int64_t moments) {
  return moments * num_coeffs - moments * (moments - 1) / 2;
}

// What depends on the parameters. `pitch` channels are the channels rounded up to whole tiles.
template <typename T>
struct ScanParameters {
  int pitch;
  int64_t rows;         // of ScanTables::contraction, those of chunks that a sequence can pass through
  const T* contracted;  // [tiles, rows, 32 lanes]: these rows times coeffs; zeros beyond the channels
  const T* decay;       // [channels]
  const T* skip;        // [channels]; null: none
};

// The rows of a sequence. Values of offsets aren't checked on CUDA: whatever they are, the rows exist, and
// there are at most `horizon` of them; `excess` says how many a sequence that is too long has more.
struct ScanSequence {
  int64_t number, begin, length, excess;
};
struct ScanWork {
  int64_t rows, length, horizon;
  const int64_t* offsets;  // null: padded, each `length` rows
  int64_t sequences;
  int64_t channels;
  int64_t segment_chunks, segments;
  int64_t row_groups;  // of blocks: each takes every row_groups-th group of as many sequences as it has warps

  __device__ ScanSequence sequence(int64_t place) const {
    if (place >= sequences) return {0, 0, 0, 0};
    if (offsets == nullptr) return {place, place * length, length, 0};
    const int64_t begin = smaller(larger(offsets[place], 0), rows);
    const int64_t whole = larger(smaller(offsets[place + 1], rows) - begin, 0);
    return {place, begin, smaller(whole, horizon), whole - smaller(whole, horizon)};
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

// The chunks of a segment that a sequence has.
struct ScanChunks {
  int64_t first, last;
};
__device__ inline ScanChunks chunks_of_segment(
    const ScanWork& work, const ScanSequence& sequence, int64_t segment) {
  const int64_t first = segment * work.segment_chunks;
  return {first, smaller(first + work.segment_chunks, chunks_of(sequence))};
}

}  // namespace hyenarec
