#include "device_tables.h"

#include <ATen/ops/from_blob.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>

#include <cstring>

#include "../../common/lru_cache.h"
#include "host_tables.h"

namespace hyenarec {
namespace {

constexpr size_t kMaxTables = 32;

// Arrays one after another on the host, each where vector loads of it are aligned.
class Packer {
 public:
  template <typename T>
  size_t add(const std::vector<T>& values) {
    const size_t begin = (bytes_.size() + kAlignment - 1) / kAlignment * kAlignment;
    bytes_.resize(begin + values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(bytes_.data() + begin, values.data(), values.size() * sizeof(T));
    return begin;
  }
  DeviceMemory copy() const { return copy_to_device(bytes_.data(), bytes_.size()); }

 private:
  static constexpr size_t kAlignment = 256;
  std::vector<std::byte> bytes_;
};

template <typename T>
std::shared_ptr<const DeviceScanTables> build(const ScanTablesKey& key) {
  const auto host =
      make_scan_tables<T>(key.horizon, key.chunk, key.num_coeffs, key.pitch, key.length, key.segment_chunks);
  Packer packer;
  const size_t shapes = packer.add(host.shapes), matrices = packer.add(host.matrices),
               contraction = packer.add(host.contraction), tail = packer.add(host.tail),
               jumps = packer.add(host.jumps), gradient = packer.add(host.gradient);
  DeviceScanTables tables{};
  tables.key = key;
  tables.tail_chunk = host.tail_chunk;
  tables.most_moments = host.most_moments;
  for (size_t i = 2; i < host.shapes.size(); i += 3) tables.first_rows.push_back(host.shapes[i]);
  tables.contraction_rows = static_cast<int64_t>(host.contraction.size()) / key.num_coeffs;
  const c10::cuda::CUDAGuard guard(key.device);
  tables.memory = packer.copy();
  const std::byte* data = tables.memory.get();
  tables.shapes = reinterpret_cast<const int64_t*>(data + shapes);
  tables.matrices = data + matrices;
  tables.contraction = data + contraction;
  tables.tail = host.tail.empty() ? nullptr : data + tail;
  tables.jumps = host.jumps.empty() ? nullptr : data + jumps;
  tables.gradient = reinterpret_cast<const double*>(data + gradient);
  return std::make_shared<const DeviceScanTables>(std::move(tables));
}

at::Tensor view(const ScanTablesKey& key, const void* data, int64_t rows, c10::ScalarType type) {
  const at::Device device(at::kCUDA, key.device);
  return at::for_blob(const_cast<void*>(data), {rows, key.num_coeffs})  // which takes no const pointer
      .options(at::TensorOptions().dtype(type).device(device))
      .target_device(device)
      .make_tensor();
}

}  // namespace

at::Tensor DeviceScanTables::contraction_matrix() const {
  return view(key, contraction, contraction_rows, key.type);
}
at::Tensor DeviceScanTables::gradient_matrix() const {
  return view(key, gradient, key.chunk + key.num_coeffs, at::kDouble);
}

std::shared_ptr<const DeviceScanTables> get_scan_tables(const ScanTablesKey& key) {
  // Never destroyed: at exit the CUDA driver may be gone before static objects are.
  static auto& cache = *new LruCache<ScanTablesKey, const DeviceScanTables>(kMaxTables);
  const bool is_captured =
      c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  return cache.get(key, is_captured, [&] {
    return key.type == c10::ScalarType::Double ? build<double>(key) : build<float>(key);
  });
}

}  // namespace hyenarec
