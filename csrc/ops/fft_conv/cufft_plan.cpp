#include "cufft_plan.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/util/Exception.h>

#include <mutex>

#include "../common/lru_cache.h"

namespace hyenarec {
namespace {

void check(cufftResult status, const char* call, const CufftPlanKey& key) {
  TORCH_CHECK(
      status == CUFFT_SUCCESS, "fft_conv: ", call, " failed with cuFFT error ", static_cast<int>(status),
      " for ", key.batch, " transforms of length ", key.length, " on cuda:", static_cast<int>(key.device));
}

}  // namespace

class CufftPlan {
 public:
  explicit CufftPlan(const CufftPlanKey& key) : key_(key) {
    check(cufftCreate(&handle_), "cufftCreate", key_);
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
    check(cufftSetStream(handle_, c10::cuda::getCurrentCUDAStream(key_.device)), "cufftSetStream", key_);
    check(cufftSetWorkArea(handle_, work_area.mutable_data_ptr()), "cufftSetWorkArea", key_);
    switch (key_.type) {
      case CUFFT_R2C:
        check(
            cufftExecR2C(handle_, static_cast<float*>(data), static_cast<cufftComplex*>(data)),
            "cufftExecR2C", key_);
        break;
      case CUFFT_C2R:
        check(
            cufftExecC2R(handle_, static_cast<cufftComplex*>(data), static_cast<float*>(data)),
            "cufftExecC2R", key_);
        break;
      case CUFFT_D2Z:
        check(
            cufftExecD2Z(handle_, static_cast<double*>(data), static_cast<cufftDoubleComplex*>(data)),
            "cufftExecD2Z", key_);
        break;
      case CUFFT_Z2D:
        check(
            cufftExecZ2D(handle_, static_cast<cufftDoubleComplex*>(data), static_cast<double*>(data)),
            "cufftExecZ2D", key_);
        break;
      default:
        TORCH_INTERNAL_ASSERT(false, "fft_conv: no such cuFFT transform: ", static_cast<int>(key_.type));
    }
  }

 private:
  void make() {
    check(cufftSetAutoAllocation(handle_, 0), "cufftSetAutoAllocation", key_);
    const bool forward = key_.type == CUFFT_R2C || key_.type == CUFFT_D2Z;
    long long length = key_.length;
    long long coefficients = key_.length / 2 + 1;
    long long reals = 2 * coefficients;
    // Distances count elements of the side they belong to. The embed sizes only matter in two dimensions and
    // more, but without them cuFFT ignores the distances.
    check(
        cufftMakePlanMany64(
            handle_, 1, &length, forward ? &reals : &coefficients, 1, forward ? reals : coefficients,
            forward ? &coefficients : &reals, 1, forward ? coefficients : reals, key_.type, key_.batch,
            &work_bytes_),
        "cufftMakePlanMany64", key_);
  }

  const CufftPlanKey key_;
  cufftHandle handle_ = 0;
  size_t work_bytes_ = 0;
  std::mutex mutex_;
};

std::shared_ptr<CufftPlan> get_cufft_plan(const CufftPlanKey& key) {
  // Never destroyed: at exit the CUDA driver may be gone before static objects are.
  static auto& cache = *new LruCache<CufftPlanKey, CufftPlan>(kCufftPlanCacheSize);
  const bool is_captured =
      c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  return cache.get(key, is_captured, [&] { return std::make_shared<CufftPlan>(key); });
}

void execute_cufft_plan(CufftPlan& plan, void* data) { plan.execute(data); }

}  // namespace hyenarec
