// Launching the kernels of this folder from torch: the part of device.cuh that needs torch.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <limits>

#include "device.cuh"

namespace hyenarec {

// Runs kernel(arguments...) on the current stream of the current device and checks the launch.
template <typename... Parameters, typename... Arguments>
void launch(const LaunchShape& shape, void (*kernel)(Parameters...), Arguments... arguments) {
  TORCH_CHECK(
      shape.blocks <= std::numeric_limits<int32_t>::max(),
      "hyenarec: the input is too large for one CUDA launch: ", shape.blocks, " blocks, at most 2^31 - 1");
  constexpr size_t kUnasked = 48 * 1024;  // shared memory that a block gets without asking for it
  if (shape.shared_bytes > kUnasked) {
    C10_CUDA_CHECK(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes)));
  }
  kernel<<<
      static_cast<unsigned int>(shape.blocks), shape.threads, shape.shared_bytes,
      c10::cuda::getCurrentCUDAStream()>>>(static_cast<Parameters>(arguments)...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace hyenarec
