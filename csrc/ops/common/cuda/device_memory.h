// Memory of a GPU that torch's allocator knows nothing of, for what outlives a call: torch may allocate from
// a CUDA graph's own pool, which it takes back or writes over with the graph.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include <cstddef>
#include <memory>

namespace hyenarec {

struct FreeDeviceMemory {
  void operator()(std::byte* data) const noexcept {
    // While a stream of any thread captures, cudaFree fails unless this thread says that it knows better.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    C10_CUDA_CHECK_WARN(cudaThreadExchangeStreamCaptureMode(&mode));
    C10_CUDA_CHECK_WARN(cudaFree(data));
    C10_CUDA_CHECK_WARN(cudaThreadExchangeStreamCaptureMode(&mode));
  }
};
// Freed by cudaFree, which first waits for all work on the device: no kernel of any stream still reads it
// then.
using DeviceMemory = std::unique_ptr<std::byte, FreeDeviceMemory>;

// A stream of our own: one of torch's may be capturing.
class PrivateStream {
 public:
  // Without the implicit waits of the default stream, which break other streams' captures.
  PrivateStream() { C10_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~PrivateStream() { C10_CUDA_CHECK_WARN(cudaStreamDestroy(stream_)); }
  PrivateStream(const PrivateStream&) = delete;
  PrivateStream& operator=(const PrivateStream&) = delete;

  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

inline DeviceMemory allocate_device_memory(size_t bytes) {
  void* data = nullptr;
  cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {  // torch may hold memory that it doesn't use
    cudaGetLastError();                       // seen
    c10::cuda::CUDACachingAllocator::emptyCache();
    status = cudaMalloc(&data, bytes);
  }
  C10_CUDA_CHECK(status);
  return DeviceMemory(static_cast<std::byte*>(data));
}

// A copy of the bytes on the current device, finished: any stream may read it. This stream or another one may
// be capturing a graph meanwhile, of which the copy does not become a part. Throws c10::Error.
inline DeviceMemory copy_to_device(const std::byte* data, size_t bytes) {
  const c10::cuda::CUDAStreamCaptureModeGuard relaxed(
      cudaStreamCaptureModeRelaxed);  // as in operator() above
  DeviceMemory memory = allocate_device_memory(bytes);
  const PrivateStream stream;
  C10_CUDA_CHECK(cudaMemcpyAsync(memory.get(), data, bytes, cudaMemcpyHostToDevice, stream.get()));
  C10_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  return memory;
}

}  // namespace hyenarec
