// cuFFT plans for batches of real signals: cached, bounded, safe to use from several threads and streams.
#pragma once

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/util/Exception.h>
#include <cufftXt.h>

#include <compare>
#include <mutex>

#include "../common/lru_cache.h"

namespace hyenarec {

// What a plan depends on. The transform is in place, on `batch` signals that lie 2 (length / 2 + 1) reals
// apart: `length` reals and their length / 2 + 1 complex coefficients share the space.
struct CufftPlanKey {
  c10::DeviceIndex device;
  int64_t length;
  int64_t batch;
  cufftType type;  // CUFFT_R2C, CUFFT_C2R, CUFFT_D2Z or CUFFT_Z2D

  auto operator<=>(const CufftPlanKey&) const = default;
};

inline void check_cufft(cufftResult status, const char* call, const CufftPlanKey& key) {
  TORCH_CHECK(
      status == CUFFT_SUCCESS, "fft_conv: ", call, " failed with cuFFT error ", static_cast<int>(status),
      " for ", key.batch, " transforms of length ", key.length, " on cuda:", static_cast<int>(key.device));
}

class CufftPlan {
 public:
  explicit CufftPlan(const CufftPlanKey& key) : key_(key) {
    check_cufft(cufftCreate(&handle_), "cufftCreate", key_);
    try {
      make();
    } catch (...) {
      cufftDestroy(handle_);
      throw;
    }
  }
  ~CufftPlan() { cufftDestroy(handle_); }  // nothing can be done about an error here
  CufftPlan(const CufftPlan&) = delete;
  CufftPlan& operator=(const CufftPlan&) = delete;

  void execute(void* data) {
    const auto options = at::TensorOptions().device(at::Device(at::kCUDA, key_.device)).dtype(at::kByte);
    const auto work_area = at::empty({static_cast<int64_t>(work_bytes_)}, options);
    // A handle remembers stream and work area between the calls below: one thread at a time. The launches
    // themselves carry their own copies, so executions on several streams may overlap on the GPU.
    const std::lock_guard<std::mutex> lock(mutex_);
    check_cufft(
        cufftSetStream(handle_, c10::cuda::getCurrentCUDAStream(key_.device)), "cufftSetStream", key_);
    check_cufft(cufftSetWorkArea(handle_, work_area.mutable_data_ptr()), "cufftSetWorkArea", key_);
    // The plan knows the direction, and cuFFT heeds this one for complex transforms only.
    check_cufft(cufftXtExec(handle_, data, data, CUFFT_FORWARD), "cufftXtExec", key_);
  }

 private:
  void make() {
    check_cufft(cufftSetAutoAllocation(handle_, 0), "cufftSetAutoAllocation", key_);
    const bool is_forward = key_.type == CUFFT_R2C || key_.type == CUFFT_D2Z;
    const bool is_double = key_.type == CUFFT_D2Z || key_.type == CUFFT_Z2D;
    struct Side {
      cudaDataType type;
      long long distance;  // of signals, in elements of the type
    };
    long long length = key_.length;
    const long long coefficients = length / 2 + 1;
    const Side reals{is_double ? CUDA_R_64F : CUDA_R_32F, 2 * coefficients};
    const Side spectra{is_double ? CUDA_C_64F : CUDA_C_32F, coefficients};
    auto in = is_forward ? reals : spectra, out = is_forward ? spectra : reals;
    // The embed sizes only matter in two dimensions and more, but without them cuFFT ignores the distances.
    check_cufft(
        cufftXtMakePlanMany(
            handle_, 1, &length, &in.distance, 1, in.distance, in.type, &out.distance, 1, out.distance,
            out.type, key_.batch, &work_bytes_, spectra.type),
        "cufftXtMakePlanMany", key_);
  }

  const CufftPlanKey key_;
  cufftHandle handle_ = 0;
  size_t work_bytes_ = 0;
  std::mutex mutex_;
};

// Transforms `data` in place on the current stream of the plan's device, which must be current. Not
// normalised. The plan comes from a cache or is made now (milliseconds; not while a CUDA graph is captured);
// the cache keeps the kCufftPlanCacheSize plans used last, and those that a CUDA graph holds. The work area
// comes from torch's caching allocator and goes back with the call, as other temporaries do.
constexpr size_t kCufftPlanCacheSize = 1024;
inline void execute_cufft(const CufftPlanKey& key, void* data) {
  // Never destroyed: at exit the CUDA driver may be gone before static objects are.
  static auto& cache = *new LruCache<CufftPlanKey, CufftPlan>(kCufftPlanCacheSize);
  const bool is_captured =
      c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  cache.get(key, is_captured, [&] { return std::make_shared<CufftPlan>(key); })->execute(data);
}

}  // namespace hyenarec
