// The Legendre scan's tables on a GPU, made once.
#pragma once

#include <ATen/core/Tensor.h>

#include <compare>
#include <memory>
#include <vector>

#include "../../common/cuda/device_memory.h"
#include "scan_tables.h"

namespace hyenarec {

// Which tables: of sequences up to `length` events (rounded up, so that few are made); see host_tables.h.
struct ScanTablesKey {
  c10::DeviceIndex device;
  int64_t horizon, chunk, num_coeffs, length, segment_chunks;

  auto operator<=>(const ScanTablesKey&) const = default;
};

template <typename T>
struct DeviceScanTables {
  ScanTablesKey key;
  int64_t most_moments;  // of any chunk
  int64_t contraction_rows;
  std::vector<int64_t> first_rows;   // of each chunk in tables.contraction
  std::vector<DeviceMemory> memory;  // of what follows
  ScanTables<T> tables;
  const double* gradient;  // see HostScanTables

  // Views of `memory`.
  at::Tensor contraction_matrix() const;  // [rows, N]
  at::Tensor gradient_matrix() const;     // [chunk + N, N]
};

// Kept for the next call: the latest 32 of a type, and those that a CUDA graph holds. The first call with a
// key builds the tables on the CPU and waits for their copy, so that any stream may read them.
template <typename T>
std::shared_ptr<const DeviceScanTables<T>> get_scan_tables(const ScanTablesKey& key);

}  // namespace hyenarec
