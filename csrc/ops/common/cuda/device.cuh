// What the kernels of this folder share. Device code only needs a CUDA compiler, no torch;
// cpp_tests/cuda_on_cpu.h runs the same files with a host compiler.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace hyenarec {

// How a kernel is launched, kept beside it so that the launch and the test without a GPU use the same
// numbers. Grids have one dimension (up to 2^31 - 1 blocks; y and z stop at 65535); kernels split blockIdx.x
// themselves.
struct LaunchShape {
  int64_t blocks;
  dim3 threads;
  size_t shared_bytes;
};

// Type of sums and of parameters beside activations of type T.
template <typename T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls visit(0), .., visit(count - 1), unrolled: arrays that they index stay in registers.
template <int count, typename Visit>
__device__ __forceinline__ void unrolled(const Visit& visit) {
#pragma unroll
  for (int i = 0; i < count; ++i) visit(i);
}

// N numbers in a thread's registers.
template <typename T, int N>
struct Vector {
  T value[N];

  __device__ T& operator[](int i) { return value[i]; }
  __device__ const T& operator[](int i) const { return value[i]; }
  __device__ void operator+=(const Vector& other) {
    unrolled<N>([&](int i) { value[i] += other[i]; });
  }
  __device__ void operator*=(const Vector& other) {
    unrolled<N>([&](int i) { value[i] *= other[i]; });
  }
  template <typename To>
  __device__ Vector<To, N> to() const {
    Vector<To, N> result;
    unrolled<N>([&](int i) { result[i] = static_cast<To>(value[i]); });
    return result;
  }
};

// The same in memory where one instruction loads or stores them.
template <typename T, int N>
struct alignas(sizeof(T) * N) AlignedVector {
  Vector<T, N> vector;
};

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
__host__ __device__ inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
__host__ __device__ inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Keeps the compiler from loading what comes after before what comes before is done, which would take
// registers. Orders nothing between threads.
__device__ inline void end_of_phase() {
#if defined(__CUDA_ARCH__)
  asm volatile("" ::: "memory");
#endif
}

// Sum over the 32 lanes of a full warp, the same bits in every lane: the order is fixed.
template <typename T>
__device__ inline T warp_sum(T value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

}  // namespace hyenarec

// A block's dynamic shared memory as `type* name`. (One name for the bytes: two kernels of one file may not
// declare an extern array with two types.)
#if defined(__CUDACC__)
#define HYENAREC_SHARED_MEMORY(type, name)                               \
  extern __shared__ __align__(16) unsigned char hyenarec_shared_bytes[]; \
  type* name = reinterpret_cast<type*>(hyenarec_shared_bytes)
#else
#define HYENAREC_SHARED_MEMORY(type, name) type* name = static_cast<type*>(cuda_on_cpu::shared_memory())
#endif
