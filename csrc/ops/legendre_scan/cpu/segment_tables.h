// Constants of the Legendre scan on the CPU, which walks time on two levels, as docs/scan.md says. See
// ../tables.h for the scan itself. No torch here.
//
// A segment of S events begins with the state carried into it, restricted to the segment; it ends with its
// moments, gathered from its chunks'. So there are S / C + T / S contractions instead of T / C, and a state
// adds up as many chunks and segments. Besides, a state consists of windows of the kernel: where R events of
// the horizon are left, of windows of R lags. Their coefficients fall with the degree, the faster the shorter
// R is beside T. Those below rounding are dropped (in float32, 9 of 17 coefficients are left for T = 16,384
// and R = 512).
//
// One level instead (S = T) takes so many times as long (float32, N = 17, D = 64, one thread, batches of 8;
// the two taking turns): T = 200 1.0, there is one segment only; T = 1,024 1.0 to 1.1; T = 4,096
// legendre_conv 1.2, with backward 1.3, hyena_mixer 1.1 and 1.2; T = 16,384 1.3, 1.4, 1.1 and 1.2. A single
// sequence of 4,096 or 16,384 events: 1.45 to 2.2. N = 33: up to 1.9. Contractions are a part of it. The
// rest: shorter states, and a tenth of the memory for contracted parameters (16 instead of 162 KB a channel
// at T = 16,384) and for what the backward pass keeps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "../tables.h"

namespace hyenarec {

// Chunks of a segment: about as many as there are segments, but not so few that these cost more than they
// save.
constexpr int64_t kMinSegmentChunks = 16;
inline int64_t segment_chunks(int64_t horizon, int64_t chunk) {
  int64_t count = kMinSegmentChunks;
  while (count * count * chunk < horizon) count *= 2;
  return count;
}

// Events of a segment.
inline int64_t segment_length(int64_t horizon, int64_t chunk) {
  return std::min(horizon, segment_chunks(horizon, chunk) * chunk);
}

// The scan within a segment.
template <typename scalar_t>
struct WithinSegment {
  // The segment is the horizon; its chunk 0 may have a state to begin with. num_degrees: what is left of the
  // kernel.
  LegendreTables<scalar_t> tables;
  // restriction [num_degrees, N]: the kernel's coefficients on the segment's lags from those on all lags.
  std::vector<double> restriction;
};

// A chunk's moments as its segment's: P_q on the segment = sum_k matrix[k][q] P_k on the chunk, k <= q < N.
template <typename scalar_t>
struct Gather {
  int64_t num_moments;              // of the chunk
  std::vector<scalar_t> matrix;     // [num_moments, N]
  std::vector<scalar_t> by_column;  // [N, num_moments]
};

template <typename scalar_t>
struct SegmentTables {
  int64_t horizon;
  int64_t chunk;
  int64_t num_coeffs;
  int64_t segment;            // S: segment_length()
  std::vector<double> basis;  // [N, C]: P_n at the first C lags of the horizon

  WithinSegment<scalar_t> whole;         // a segment of S events
  WithinSegment<scalar_t> cut;           // the horizon's last one, if shorter
  LegendreTables<scalar_t> between;      // segments as chunks, without a basis; a cut segment has no local
  std::vector<Gather<scalar_t>> gather;  // [chunk], for segments that have a successor

  int64_t reach() const { return between.reach(); }
  bool is_cut(int64_t index) const { return (index + 1) * segment > horizon; }
};

// The tables for histories of up to `length` events, 0 <= length <= horizon. Built in double once and kept;
// from any thread.
template <typename scalar_t>
std::shared_ptr<const SegmentTables<scalar_t>> segment_tables(
    int64_t horizon, int64_t chunk, int64_t num_coeffs, int64_t length);

}  // namespace hyenarec
