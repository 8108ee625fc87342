// The Legendre scan's tables as the GPU reads them: flat, rows padded for vector loads. No torch, no CUDA
// here.
#pragma once

#include <cstdint>
#include <vector>

#include "scan_tables.h"

namespace hyenarec {

// The arrays of ScanTables.
template <typename T>
struct HostScanTables {
  int64_t horizon = 0, num_coeffs = 0;
  int64_t tail_chunk = -1;
  int64_t most_moments = 0;  // of any chunk
  std::vector<ScanChunkShape> shapes;
  std::vector<T> matrices, contraction, tail, jumps;
  // [chunk + N, N]: the gradient of coeffs from that of the near kernel's polynomials at the lags, then the
  // coefficients' own sums. The near lags' rows of `contraction` above the identity.
  std::vector<double> gradient;

  // Tables whose arrays lie at place(array).
  template <typename Place>
  ScanTables<T> placed(const Place& place) const {
    const auto n = static_cast<int>(num_coeffs), pitch = static_cast<int>(scan_pitch(num_coeffs));
    return {n,           pitch,       horizon, tail_chunk, place(shapes), place(matrices), place(contraction),
            place(tail), place(jumps)};
  }
};

// For sequences of up to `length` events, chunks of `chunk`; jumps over segments of segment_chunks chunks,
// none if that is 0.
template <typename T>
HostScanTables<T> make_scan_tables(
    int64_t horizon, int64_t chunk, int64_t num_coeffs, int64_t length, int64_t segment_chunks);

}  // namespace hyenarec
