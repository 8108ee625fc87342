#include "cufft_plan.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <c10/util/hash.h>

#include <algorithm>
#include <list>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace hyenarec {
namespace {

void check(cufftResult status, const char* call, const CufftPlanKey& key) {
  TORCH_CHECK(
      status == CUFFT_SUCCESS, "fft_conv: ", call, " failed with cuFFT error ", static_cast<int>(status),
      " for ", key.batch, " transforms of length ", key.length, " on cuda:", static_cast<int>(key.device));
}

struct KeyHash {
  size_t operator()(const CufftPlanKey& key) const {
    return c10::get_hash(static_cast<int>(key.device), key.length, key.batch, static_cast<int>(key.type));
  }
};

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

namespace {

// Least recently used plans are dropped first.
class PlanCache {
 public:
  std::shared_ptr<CufftPlan> get(const CufftPlanKey& key) {
    std::shared_ptr<CufftPlan> dropped;  // dies after the lock: destroying a plan may wait for the GPU
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto found = index_.find(key); found != index_.end()) {
      plans_.splice(plans_.begin(), plans_, found->second);
      return found->second->second;
    }
    plans_.emplace_front(key, std::make_shared<CufftPlan>(key));
    index_.emplace(key, plans_.begin());
    if (plans_.size() > kCufftPlanCacheSize) {
      index_.erase(plans_.back().first);
      dropped = std::move(plans_.back().second);
      plans_.pop_back();
    }
    return plans_.front().second;
  }

 private:
  using Plans = std::list<std::pair<CufftPlanKey, std::shared_ptr<CufftPlan>>>;  // last used first
  std::mutex mutex_;
  Plans plans_;
  std::unordered_map<CufftPlanKey, Plans::iterator, KeyHash> index_;
};

}  // namespace

std::shared_ptr<CufftPlan> get_cufft_plan(const CufftPlanKey& key) {
  // Never destroyed: at exit the CUDA driver may be gone before static objects are.
  static auto& cache = *new PlanCache;
  return cache.get(key);
}

void execute_cufft_plan(CufftPlan& plan, void* data) { plan.execute(data); }

}  // namespace hyenarec
