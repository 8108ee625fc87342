// The Legendre scan's tables as the GPU reads them: flat, rows padded for vector loads. No torch, no CUDA
// here.
#pragma once

#include <cstdint>
#include <vector>

namespace hyenarec {

// See ScanTables in layout.cuh for what the arrays mean and how they are laid out.
template <typename T>
struct HostScanTables {
  int64_t chunks = 0;  // that are covered
  int64_t tail_chunk = -1;
  int64_t most_moments = 0;  // of any chunk
  std::vector<int64_t> shapes;
  std::vector<T> matrices, contraction, tail, jumps;
  // [chunk + N, N]: the gradient of coeffs from that of the near kernel's polynomials at the lags, then the
  // coefficients' own sums. The near lags' rows of `contraction` above the identity.
  std::vector<double> gradient;
};

// For sequences of up to `length` events, chunks of `chunk`, rows of `pitch` numbers; jumps over segments of
// segment_chunks chunks, none if that is 0.
template <typename T>
HostScanTables<T> make_scan_tables(
    int64_t horizon, int64_t chunk, int64_t num_coeffs, int64_t pitch, int64_t length,
    int64_t segment_chunks);

}  // namespace hyenarec
