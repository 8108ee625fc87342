// Launching the kernels of this folder from torch: the part of device.cuh that needs torch.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <limits>
#include <mutex>
#include <set>
#include <utility>

#include "device.cuh"

namespace hyenarec {

// Lets the kernel have as much shared memory as blocks of the current device can have. Once and for all: to
// ask for what each launch needs might take away what another thread has just asked for.
inline void allow_all_shared_memory(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  const int device = c10::cuda::current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({kernel, device}) > 0) return;
  int most = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  allowed.emplace(kernel, device);
}

// Runs kernel(arguments...) on the current stream of the current device and checks the launch.
template <typename... Parameters, typename... Arguments>
void launch(const LaunchShape& shape, void (*kernel)(Parameters...), Arguments... arguments) {
  TORCH_CHECK(
      shape.blocks <= std::numeric_limits<int32_t>::max(),
      "hyenarec: the input is too large for one CUDA launch: ", shape.blocks, " blocks, at most 2^31 - 1");
  constexpr size_t kUnasked = 48 * 1024;  // shared memory that a block gets without asking for it
  if (shape.shared_bytes > kUnasked) allow_all_shared_memory(reinterpret_cast<const void*>(kernel));
  kernel<<<
      static_cast<unsigned int>(shape.blocks), shape.threads, shape.shared_bytes,
      c10::cuda::getCurrentCUDAStream()>>>(static_cast<Parameters>(arguments)...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace hyenarec
