// cuFFT plans for batches of real signals: cached, bounded, safe to use from several threads and streams.
#pragma once

#include <c10/core/Device.h>
#include <cufft.h>

#include <compare>
#include <cstdint>
#include <memory>

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

class CufftPlan;

// The plan of `key`, from the cache or made now (milliseconds; not while a CUDA graph is captured). The cache
// keeps the kCufftPlanCacheSize plans used last, and those that a CUDA graph holds.
constexpr size_t kCufftPlanCacheSize = 1024;
std::shared_ptr<CufftPlan> get_cufft_plan(const CufftPlanKey& key);

// Transforms `data` in place on the current stream of the plan's device, which must be current. Not
// normalised. The work area comes from torch's caching allocator and goes back with the call, as other
// temporaries do.
void execute_cufft_plan(CufftPlan& plan, void* data);

}  // namespace hyenarec
