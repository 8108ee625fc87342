// A block's sums of row vectors, one after another through the same shared memory.
#include "device_test.h"

#include "ops/common/cuda/row_vectors.cuh"

namespace {

using namespace device_test;
using namespace hyenarec;

constexpr unsigned int kLanes = 4, kRuns = 3;

float value(unsigned int run, int64_t channel, int which) {
  return static_cast<float>(100 * which + 10 * static_cast<int>(run) + static_cast<int>(channel));
}

// target [2, channels]: the sums over runs.
template <int kVector>
void sum_twice(float* target, int64_t channels) {
  HYENAREC_SHARED_MEMORY(float, shared);
  for (int which = 0; which < 2; ++which) {
    Vector<float, kVector> mine;
    for (int i = 0; i < kVector; ++i) mine[i] = value(threadIdx.y, threadIdx.x * kVector + i, which);
    store_group_sum(mine, shared, target + which * channels, channels);
  }
}

template <int kVector>
void check(int64_t channels) {
  Buffer<float> target(2 * channels);
  const LaunchShape shape{1, dim3(kLanes, kRuns), kRuns * kLanes * kVector * sizeof(float)};
  launch(shape, BlockOrder::ascending, sum_twice<kVector>, target.data(), channels);
  for (int64_t i = 0; i < 2 * channels; ++i) {
    float sum = 0;
    for (unsigned int run = 0; run < kRuns; ++run)
      sum += value(run, i % channels, static_cast<int>(i / channels));
    EXPECT_EQ(target[i], sum) << i;
  }
}

TEST(RowVectorsDevice, AddsUpOverRuns) {
  check<4>(kLanes * 4);
  check<4>(kLanes * 4 - 3);  // the last lanes' channels don't exist
  check<1>(kLanes);
}

}  // namespace
