// The Legendre scan's tables on a GPU, made once.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

namespace hyenarec {

// Which tables: of sequences up to `length` events (rounded up, so that few are made); see scan_tables.h.
struct ScanTablesKey {
  c10::DeviceIndex device;
  c10::ScalarType type;  // float or double
  int64_t horizon, chunk, num_coeffs, pitch, length, segment_chunks;

  bool operator==(const ScanTablesKey&) const = default;
};

struct DeviceScanTables {
  int64_t tail_chunk, most_moments;
  at::Tensor shapes, matrices, transfer, tail, jumps;
};

// Kept for the next call: the latest 32. The first call with a key builds the tables on the CPU and waits for
// their copy, so that any stream may read them (and a CUDA graph must be captured after it); each call tells
// torch's allocator that the current stream reads them, so that dropping them is safe, too.
std::shared_ptr<const DeviceScanTables> get_scan_tables(const ScanTablesKey& key);

}  // namespace hyenarec
