#include "device_tables.h"

#include <ATen/ops/from_blob.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>

#include "../../common/lru_cache.h"
#include "host_tables.h"

namespace hyenarec {
namespace {

constexpr size_t kMaxTables = 32;

template <typename T>
DeviceScanTables<T> build(const ScanTablesKey& key) {
  const auto host =
      make_scan_tables<T>(key.horizon, key.chunk, key.num_coeffs, key.length, key.segment_chunks);
  DeviceScanTables<T> result{};
  result.key = key;
  result.most_moments = host.most_moments;
  result.contraction_rows = static_cast<int64_t>(host.contraction.size()) / key.num_coeffs;
  for (const auto& shape : host.shapes) result.first_rows.push_back(shape.transfer);
  const c10::cuda::CUDAGuard guard(key.device);
  const auto place = [&]<typename U>(const std::vector<U>& array) -> const U* {
    if (array.empty()) return nullptr;
    const auto* bytes = reinterpret_cast<const std::byte*>(array.data());
    result.memory.push_back(copy_to_device(bytes, array.size() * sizeof(U)));
    return reinterpret_cast<const U*>(result.memory.back().get());
  };
  result.tables = host.placed(place);
  result.gradient = place(host.gradient);
  return result;
}

template <typename T>
at::Tensor view(const ScanTablesKey& key, const T* data, int64_t rows) {
  const at::Device device(at::kCUDA, key.device);
  return at::for_blob(const_cast<T*>(data), {rows, key.num_coeffs})  // which takes no const pointer
      .options(at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value).device(device))
      .target_device(device)
      .make_tensor();
}

}  // namespace

template <typename T>
at::Tensor DeviceScanTables<T>::contraction_matrix() const {
  return view(key, tables.contraction, contraction_rows);
}
template <typename T>
at::Tensor DeviceScanTables<T>::gradient_matrix() const {
  return view(key, gradient, key.chunk + key.num_coeffs);
}

template <typename T>
std::shared_ptr<const DeviceScanTables<T>> get_scan_tables(const ScanTablesKey& key) {
  // Never destroyed: at exit the CUDA driver may be gone before static objects are.
  static auto& cache = *new LruCache<ScanTablesKey, const DeviceScanTables<T>>(kMaxTables);
  const bool is_captured =
      c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  return cache.get(
      key, is_captured, [&] { return std::make_shared<const DeviceScanTables<T>>(build<T>(key)); });
}

template struct DeviceScanTables<float>;
template struct DeviceScanTables<double>;
template std::shared_ptr<const DeviceScanTables<float>> get_scan_tables(const ScanTablesKey&);
template std::shared_ptr<const DeviceScanTables<double>> get_scan_tables(const ScanTablesKey&);

}  // namespace hyenarec
