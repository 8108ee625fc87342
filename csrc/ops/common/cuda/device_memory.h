// Memory of a GPU that torch's allocator knows nothing of, for what outlives a call: torch may allocate from
// a CUDA graph's own pool, which it takes back or writes over with the graph.
#pragma once

#include <cstddef>
#include <memory>

namespace hyenarec {

struct FreeDeviceMemory {
  void operator()(std::byte* data) const noexcept;
};
// Freed by cudaFree, which first waits for all work on the device: no kernel of any stream still reads it
// then.
using DeviceMemory = std::unique_ptr<std::byte, FreeDeviceMemory>;

// A copy of the bytes on the current device, finished: any stream may read it. This stream or another one may
// be capturing a graph meanwhile, of which the copy does not become a part. Throws c10::Error.
DeviceMemory copy_to_device(const std::byte* data, size_t bytes);

}  // namespace hyenarec
