// The memory layout that the CPU kernels read: any strides, but the channels of one event side by side.
#pragma once

#include <ATen/core/Tensor.h>

namespace hyenarec {

inline at::Tensor with_unit_channel_stride(const at::Tensor& tensor) {
  return tensor.stride(-1) == 1 || tensor.size(-1) <= 1 ? tensor : tensor.contiguous();
}

}  // namespace hyenarec
