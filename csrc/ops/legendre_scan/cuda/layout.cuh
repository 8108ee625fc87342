// How the Legendre scan's tables, parameters and sequences lie in memory, and which of them a thread has.
// Shared by the scan's sweeps and legendre_step.
#pragma once

#include "../../common/cuda/device.cuh"
#include "scan_tables.h"

namespace hyenarec {

static_assert(kScanChunk % 4 == 0, "a chunk has two halves, whose sums are made by twos");
constexpr int kScanLanes = 32;  // channels of a warp: a tile

// A number for each event of a chunk.
template <typename T>
using ScanChunk = Vector<T, kScanChunk>;

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
  __host__ __device__ int64_t segment_rows() const { return segment_chunks * kScanChunk; }
  // Where a sequence's first chunk or segment, of `unit` rows, is kept; the next ones follow. No two
  // sequences' overlap, and there are slots(unit) of them.
  __device__ int64_t slot(const ScanSequence& sequence, int64_t unit) const {
    return sequence.begin / unit + sequence.number;
  }
  int64_t slots(int64_t unit) const { return rows / unit + sequences; }
};

// All that a scan reads beside its activations.
template <typename T>
struct ScanInput {
  ScanWork work;
  ScanTables<T> tables;
  ScanParameters<T> channels;
};

__device__ inline int64_t chunks_of(const ScanSequence& sequence) {
  return ceil_div(sequence.length, kScanChunk);
}
// One channel of `count` <= 32 rows from `row` on, before which the same sequence has `before`.
struct ScanChunkRows {
  int64_t channel, row, before;
  int count;

  __device__ bool is_whole() const { return count == kScanChunk; }
};
// Of a chunk that the sequence has.
__device__ inline ScanChunkRows chunk_rows(int64_t channel, const ScanSequence& sequence, int64_t chunk) {
  const int64_t before = chunk * kScanChunk;
  return {
      channel, sequence.begin + before, before,
      static_cast<int>(smaller(sequence.length - before, kScanChunk))};
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
