// The memory layout that the kernels read: any strides, but the channels of one event side by side.
#pragma once

#include <ATen/core/Tensor.h>

namespace hyenarec {

// The tensor itself if its last dimension lies contiguously (as a slice of channels does), else a contiguous
// copy.
inline at::Tensor with_unit_channel_stride(const at::Tensor& tensor) {
  return tensor.stride(-1) == 1 || tensor.size(-1) <= 1 ? tensor : tensor.contiguous();
}

// [.., D] as [rows, D] with contiguous channels, rows at an even distance: the tensor's own memory where its
// strides allow it, else a copy.
inline at::Tensor as_rows(const at::Tensor& tensor) {
  const int64_t channels = tensor.size(-1);
  return with_unit_channel_stride(tensor).reshape({tensor.numel() / channels, channels});
}

}  // namespace hyenarec
