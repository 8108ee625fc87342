// The Legendre scan's tables on a GPU, made once.
#pragma once

#include <ATen/core/Tensor.h>

#include <compare>
#include <memory>
#include <vector>

#include "../../common/cuda/device_memory.h"

namespace hyenarec {

// Which tables: of sequences up to `length` events (rounded up, so that few are made); see host_tables.h.
struct ScanTablesKey {
  c10::DeviceIndex device;
  c10::ScalarType type;  // float or double
  int64_t horizon, chunk, num_coeffs, pitch, length, segment_chunks;

  auto operator<=>(const ScanTablesKey&) const = default;
};

// The arrays of HostScanTables, which are of type key.type unless they are named here; null if they are
// empty.
struct DeviceScanTables {
  ScanTablesKey key;
  int64_t tail_chunk, most_moments;
  std::vector<int64_t> first_rows;  // of each chunk in `contraction`
  int64_t contraction_rows;
  DeviceMemory memory;  // of all that follow
  const int64_t* shapes;
  const void *matrices, *contraction, *tail, *jumps;
  const double* gradient;

  // Views of `memory`.
  at::Tensor contraction_matrix() const;  // [rows, N]
  at::Tensor gradient_matrix() const;     // [chunk + N, N], double
};

// Kept for the next call: the latest 32, and those that a CUDA graph holds. The first call with a key builds
// the tables on the CPU and waits for their copy, so that any stream may read them.
std::shared_ptr<const DeviceScanTables> get_scan_tables(const ScanTablesKey& key);

}  // namespace hyenarec
