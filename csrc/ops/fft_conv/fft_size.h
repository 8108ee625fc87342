// The transform length of fft_conv, for CPU and CUDA. No torch here.
#pragma once

#include <algorithm>
#include <cstdint>

namespace hyenarec {

// The smallest 2^a 3^b 5^c 7^d >= minimum (and >= 1): the lengths for which FFT libraries are fast.
inline int64_t next_fft_size(int64_t minimum) {
  for (int64_t size = std::max<int64_t>(minimum, 1);; ++size) {
    int64_t rest = size;
    for (int64_t prime : {2, 3, 5, 7}) {
      while (rest % prime == 0) rest /= prime;
    }
    if (rest == 1) return size;
  }
}

// Lags of the kernel that a sequence of `length` events can reach.
inline int64_t fft_conv_lags(int64_t length, int64_t kernel_lags) { return std::min(length, kernel_lags); }

// Transform length without circular overlap: room for length + lags - 1 results (at least `length`).
inline int64_t fft_conv_size(int64_t length, int64_t kernel_lags) {
  return next_fft_size(length + std::max<int64_t>(fft_conv_lags(length, kernel_lags), 1) - 1);
}

}  // namespace hyenarec
