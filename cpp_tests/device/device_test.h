// What the tests of this folder share: CUDA kernels on the CPU beside numbers from the oracle.
#pragma once

#include "cuda_on_cpu.h"  // first: it provides the words of CUDA

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "ops/common/cuda/device.cuh"
#include "oracle_tables.h"

namespace device_test {

using cuda_on_cpu::BlockOrder;
using hyenarec::LaunchShape;

// As the .cu files launch it.
template <typename... Parameters, typename... Arguments>
void launch(
    const LaunchShape& shape, BlockOrder order, void (*kernel)(Parameters...),
    const Arguments&... arguments) {
  ASSERT_LE(shape.blocks, 1 << 20);
  cuda_on_cpu::launch(
      dim3(static_cast<unsigned int>(shape.blocks)), shape.threads, shape.shared_bytes, order, kernel,
      arguments...);
}

// Numbers on the heap, exactly as many as there are, so that AddressSanitizer sees an index beyond them; NaN
// until written, so that a number that no thread writes is seen.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : size_(size), data_(new T[static_cast<size_t>(size)]) {
    for (int64_t i = 0; i < size; ++i) data_[i] = static_cast<T>(NAN);
  }
  explicit Buffer(const std::vector<double>& values) : Buffer(static_cast<int64_t>(values.size())) {
    for (int64_t i = 0; i < size_; ++i) data_[i] = static_cast<T>(values[static_cast<size_t>(i)]);
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

  std::vector<double> values() const {
    std::vector<double> result(static_cast<size_t>(size_));
    for (int64_t i = 0; i < size_; ++i) result[static_cast<size_t>(i)] = static_cast<double>(data_[i]);
    return result;
  }

 private:
  int64_t size_;
  std::unique_ptr<T[]> data_;
};

// The sum over groups of what each has left: what torch does after a kernel that sums by groups, in double.
template <typename T>
std::vector<double> sum_over_groups(const Buffer<T>& partial, int64_t groups) {
  const int64_t size = partial.size() / groups;
  std::vector<double> sums(static_cast<size_t>(size));
  for (int64_t i = 0; i < partial.size(); ++i)
    sums[static_cast<size_t>(i % size)] += static_cast<double>(partial[i]);
  return sums;
}

// norm(actual - expected) / norm(expected); infinite if a number is not finite.
inline double relative_error(const std::vector<double>& actual, const std::vector<double>& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size() && i < actual.size(); ++i) {
    if (!std::isfinite(actual[i])) return INFINITY;
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

// What rounding alone may cost: of sums in float or double, and of the result where activations have 16 bits.
template <typename T>
constexpr double kTolerance = 1e-6;
template <>
inline constexpr double kTolerance<double> = 1e-13;
template <>
inline constexpr double kTolerance<cuda_on_cpu::BFloat16> = 1.0 / 256;
template <>
inline constexpr double kTolerance<cuda_on_cpu::Half> = 1.0 / 2048;

// Cases that take many blocks run once, in float: every variant of them would take minutes under
// ThreadSanitizer.
inline bool is_large(const oracle::Case& expected) { return expected["out"].values.size() > 3000; }

// "fft_conv.all" without what GoogleTest does not take in a name.
inline std::string case_name(const oracle::Case& expected) {
  return expected.name().substr(expected.name().find('.') + 1);
}

}  // namespace device_test
