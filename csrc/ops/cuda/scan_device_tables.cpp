#include "scan_device_tables.h"

#include <ATen/ops/from_blob.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <list>
#include <mutex>
#include <utility>
#include <vector>

#include "scan_tables.h"

namespace hyenarec {
namespace {

constexpr size_t kMostTables = 32;

template <typename T>
at::Tensor on_device(const std::vector<T>& values, c10::DeviceIndex device) {
  auto* data = const_cast<T*>(values.data());  // from_blob takes no const pointer; the copy only reads
  const auto type = c10::CppTypeToScalarType<T>::value;
  return at::from_blob(data, {static_cast<int64_t>(values.size())}, at::TensorOptions().dtype(type))
      .to(at::Device(at::kCUDA, device), type, /*non_blocking=*/false, /*copy=*/true);
}

template <typename T>
DeviceScanTables build(const ScanTablesKey& key) {
  const auto flat =
      make_scan_tables<T>(key.horizon, key.chunk, key.num_coeffs, key.pitch, key.length, key.segment_chunks);
  return {
      flat.tail_chunk,
      flat.most_moments,
      on_device(flat.shapes, key.device),
      on_device(flat.matrices, key.device),
      on_device(flat.transfer, key.device),
      on_device(flat.tail, key.device),
      on_device(flat.jumps, key.device)};
}

class Cache {
 public:
  using Shared = std::shared_ptr<const DeviceScanTables>;

  Shared get(const ScanTablesKey& key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found =
        std::find_if(tables_.begin(), tables_.end(), [&](const auto& kept) { return kept.first == key; });
    if (found != tables_.end()) {
      tables_.splice(tables_.begin(), tables_, found);
    } else {
      auto made = key.type == c10::ScalarType::Double ? build<double>(key) : build<float>(key);
      tables_.emplace_front(key, std::make_shared<const DeviceScanTables>(std::move(made)));
      if (tables_.size() > kMostTables) tables_.pop_back();
    }
    return tables_.front().second;
  }

 private:
  std::mutex mutex_;
  std::list<std::pair<ScanTablesKey, Shared>> tables_;  // last used first
};

}  // namespace

std::shared_ptr<const DeviceScanTables> get_scan_tables(const ScanTablesKey& key) {
  // Never destroyed: at exit the CUDA driver may be gone before static objects are.
  static auto& cache = *new Cache;
  auto tables = cache.get(key);
  const auto stream = c10::cuda::getCurrentCUDAStream(key.device).unwrap();
  for (const auto* tensor :
       {&tables->shapes, &tables->matrices, &tables->transfer, &tables->tail, &tables->jumps}) {
    if (tensor->numel() > 0) const_cast<at::Tensor*>(tensor)->record_stream(stream);
  }
  return tables;
}

}  // namespace hyenarec
