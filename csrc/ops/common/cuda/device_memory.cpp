#include "device_memory.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

namespace hyenarec {
namespace {

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

DeviceMemory allocate(size_t bytes) {
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

}  // namespace

void FreeDeviceMemory::operator()(std::byte* data) const noexcept {
  // While a stream of any thread captures, cudaFree fails unless this thread says that it knows better.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  C10_CUDA_CHECK_WARN(cudaThreadExchangeStreamCaptureMode(&mode));
  C10_CUDA_CHECK_WARN(cudaFree(data));
  C10_CUDA_CHECK_WARN(cudaThreadExchangeStreamCaptureMode(&mode));
}

DeviceMemory copy_to_device(const std::byte* data, size_t bytes) {
  const c10::cuda::CUDAStreamCaptureModeGuard relaxed(
      cudaStreamCaptureModeRelaxed);  // as in operator() above
  DeviceMemory memory = allocate(bytes);
  const PrivateStream stream;
  C10_CUDA_CHECK(cudaMemcpyAsync(memory.get(), data, bytes, cudaMemcpyHostToDevice, stream.get()));
  C10_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  return memory;
}

}  // namespace hyenarec
