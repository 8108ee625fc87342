// The executor itself: does it run kernels as a GPU would, and does it refuse what a GPU may not do?
#include "device_test.h"

namespace {

using cuda_on_cpu::BFloat16;
using cuda_on_cpu::BlockOrder;
using cuda_on_cpu::launch;

__global__ void record_indices(int* out) {
  const unsigned int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += static_cast<int>(1000 * block + thread);
}

TEST(CudaOnCpu, RunsEveryThreadOfEveryBlockOnce) {
  for (const auto order : {BlockOrder::ascending, BlockOrder::descending}) {
    std::vector<int> out(2 * 3 * 2 * 24, 0);
    launch(dim3(2, 3, 2), dim3(4, 3, 2), 0, order, record_indices, out.data());
    for (int block = 0; block < 12; ++block) {
      for (int thread = 0; thread < 24; ++thread) EXPECT_EQ(out[block * 24 + thread], 1000 * block + thread);
    }
  }
}

__global__ void reverse_block(const int* in, int* out) {
  int* shared = static_cast<int*>(cuda_on_cpu::shared_memory());
  const unsigned int first = blockIdx.x * blockDim.x;
  shared[threadIdx.x] = in[first + threadIdx.x];
  __syncthreads();
  out[first + threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

TEST(CudaOnCpu, BarriersOrderSharedMemory) {
  std::vector<int> in(4 * 40), out(4 * 40);
  for (int i = 0; i < 160; ++i) in[i] = i;
  launch(dim3(4), dim3(40), 40 * sizeof(int), BlockOrder::ascending, reverse_block, in.data(), out.data());
  for (int i = 0; i < 160; ++i) EXPECT_EQ(out[i], i / 40 * 40 + 39 - i % 40);
}

__global__ void read_fresh_shared(float* out) {
  out[threadIdx.x] = static_cast<float*>(cuda_on_cpu::shared_memory())[threadIdx.x];
}

TEST(CudaOnCpu, FreshSharedMemoryIsNaN) {
  std::vector<float> out(8, 0.f);
  launch(dim3(1), dim3(8), 8 * sizeof(float), BlockOrder::ascending, read_fresh_shared, out.data());
  for (const float value : out) EXPECT_TRUE(std::isnan(value));
}

__global__ void shuffle_all(int* out) {
  const int lane = static_cast<int>(threadIdx.x % 32),
            value = 100 * static_cast<int>(threadIdx.x / 32) + lane;
  int* mine = out + 4 * threadIdx.x;
  mine[0] = __shfl_sync(0xffffffffu, value, 5);
  mine[1] = __shfl_xor_sync(0xffffffffu, value, 3);
  mine[2] = __shfl_down_sync(0xffffffffu, value, 30);
  mine[3] = __shfl_up_sync(0xffffffffu, value, 30);
}

TEST(CudaOnCpu, ShufflesStayInTheirWarp) {
  std::vector<int> out(4 * 64);
  launch(dim3(1), dim3(64), 0, BlockOrder::ascending, shuffle_all, out.data());
  for (int thread = 0; thread < 64; ++thread) {
    const int base = thread / 32 * 100, lane = thread % 32;
    EXPECT_EQ(out[4 * thread], base + 5);
    EXPECT_EQ(out[4 * thread + 1], base + (lane ^ 3));
    EXPECT_EQ(out[4 * thread + 2], base + (lane < 2 ? lane + 30 : lane));
    EXPECT_EQ(out[4 * thread + 3], base + (lane < 30 ? lane : lane - 30));
  }
}

__global__ void sum_warp(double* out) {
  out[threadIdx.x] = hyenarec::warp_sum(static_cast<double>(threadIdx.x));
}

TEST(CudaOnCpu, WarpSumGivesEveryLaneTheTotal) {
  std::vector<double> out(32);
  launch(dim3(1), dim3(32), 0, BlockOrder::ascending, sum_warp, out.data());
  for (const double value : out) EXPECT_EQ(value, 31 * 32 / 2);
}

__global__ void half_of_the_block_synchronises() {
  if (threadIdx.x % 2 == 0) __syncthreads();
}
__global__ void half_of_the_warp_shuffles(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
}
__global__ void reads_a_missing_lane(int* out) { out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 20); }
__global__ void shuffles_with_half_a_mask(int* out) { out[threadIdx.x] = __shfl_sync(0xffffu, 1, 0); }
__global__ void throws_in_block_two() {
  if (blockIdx.x == 2 && threadIdx.x == 1) throw std::runtime_error("thread one");
}

TEST(CudaOnCpu, RefusesWhatAGpuMayNotDo) {
  std::vector<int> out(64);
  const auto order = BlockOrder::ascending;
  EXPECT_THROW(launch(dim3(3), dim3(64), 0, order, half_of_the_block_synchronises), std::runtime_error);
  EXPECT_THROW(
      launch(dim3(1), dim3(32), 0, order, half_of_the_warp_shuffles, out.data()), std::runtime_error);
  EXPECT_THROW(launch(dim3(1), dim3(16), 0, order, reads_a_missing_lane, out.data()), std::runtime_error);
  EXPECT_THROW(
      launch(dim3(1), dim3(32), 0, order, shuffles_with_half_a_mask, out.data()), std::runtime_error);
  EXPECT_THROW(launch(dim3(4), dim3(8), 0, order, throws_in_block_two), std::runtime_error);
  EXPECT_THROW(launch(dim3(1), dim3(1025), 0, order, throws_in_block_two), std::invalid_argument);
  EXPECT_THROW(launch(dim3(1, 65536), dim3(1), 0, order, throws_in_block_two), std::invalid_argument);
}

TEST(CudaOnCpu, BFloat16RoundsToNearestEven) {
  EXPECT_EQ(static_cast<float>(BFloat16(1.0f + 1.0f / 256)), 1.0f);               // a tie: down to even
  EXPECT_EQ(static_cast<float>(BFloat16(1.0f + 3.0f / 256)), 1.0f + 4.0f / 256);  // a tie: up to even
  EXPECT_EQ(static_cast<float>(BFloat16(-3.140625f)), -3.140625f);
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::nanf("")))));
  EXPECT_TRUE(std::isinf(static_cast<float>(BFloat16(3.4e38f))));
}

}  // namespace
