// The Legendre scan's tables as the kernels read them. No torch, no CUDA here.
#pragma once

#include <cstdint>

#include "../../common/macros.h"

namespace hyenarec {

constexpr int kScanChunk = 32;

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

  HYENAREC_HOST_DEVICE const T* local(int64_t chunk) const {
    return matrices + 2 * chunk * num_coeffs * pitch;
  }
  HYENAREC_HOST_DEVICE const T* restriction_change(int64_t chunk) const {
    return matrices + (2 * chunk + 1) * num_coeffs * pitch;
  }
};

inline int64_t scan_pitch(int64_t num_coeffs) { return (num_coeffs + 3) / 4 * 4; }
// Entries (q, p), p + q < N, of q < moments, q by q: the numbers of a channel's contracted transfer matrix.
HYENAREC_HOST_DEVICE inline int64_t scan_entries(int64_t num_coeffs, int64_t moments) {
  return moments * num_coeffs - moments * (moments - 1) / 2;
}

}  // namespace hyenarec
