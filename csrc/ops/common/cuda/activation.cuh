// An activation as kernels see it that treat its sequences apart.
#pragma once

#include "device.cuh"

namespace hyenarec {

// [sequences, events, channels] with the channels side by side. Without data it is absent: a gate of ones, a
// result that isn't wanted.
template <typename scalar_t>
struct Activation {
  scalar_t* data;
  int64_t sequence_stride, row_stride;

  __device__ scalar_t* at(int64_t sequence, int64_t t, int64_t channel) const {
    return data + sequence * sequence_stride + t * row_stride + channel;
  }
};

template <typename scalar_t>
__device__ inline accumulate_t<scalar_t> load_or_one(
    const Activation<const scalar_t>& source, int64_t sequence, int64_t t, int64_t channel) {
  using T = accumulate_t<scalar_t>;
  return source.data == nullptr ? T(1) : static_cast<T>(*source.at(sequence, t, channel));
}

}  // namespace hyenarec
