// What blocks of rows leave of a sum over all rows, added up.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

namespace hyenarec {

// The sum over the blocks of `partial` [blocks, ..], contiguous, in double: always in the same order, so that
// it is the same on any number of threads.
template <typename T>
at::Tensor sum_over_blocks(const at::Tensor& partial) {
  const auto sums = at::zeros(partial.sizes().slice(1), partial.options().dtype(at::kDouble));
  const auto* values = partial.const_data_ptr<T>();
  auto* totals = sums.mutable_data_ptr<double>();
  const int64_t size = sums.numel();
  for (int64_t block = 0; block < partial.size(0); ++block) {
    for (int64_t i = 0; i < size; ++i) totals[i] += *values++;
  }
  return sums;
}

}  // namespace hyenarec
