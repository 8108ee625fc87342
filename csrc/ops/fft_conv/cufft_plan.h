// cuFFT plans for batches of real signals: cached, bounded, safe to use from several threads and streams.
#pragma once

#include <c10/core/Device.h>
#include <cufft.h>

#include <compare>
#include <cstdint>

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

// Transforms `data` in place on the current stream of the plan's device, which must be current. Not
// normalised. The plan comes from a cache or is made now (milliseconds; not while a CUDA graph is captured);
// the cache keeps the kCufftPlanCacheSize plans used last, and those that a CUDA graph holds. The work area
// comes from torch's caching allocator and goes back with the call, as other temporaries do.
constexpr size_t kCufftPlanCacheSize = 1024;
void execute_cufft(const CufftPlanKey& key, void* data);

}  // namespace hyenarec
