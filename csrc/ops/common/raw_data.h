// What the kernels of every device get of a tensor: a pointer.
#pragma once

#include <ATen/core/Tensor.h>

#include <type_traits>

namespace hyenarec {

// The tensor's numbers in the type, const or not, that a kernel knows them by; nullptr if it is undefined or
// has none.
template <typename T>
T* data_or_null(const at::Tensor& tensor) {
  if (!tensor.defined()) return nullptr;
  if constexpr (std::is_const_v<T>)
    return static_cast<T*>(tensor.const_data_ptr());
  else
    return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace hyenarec
