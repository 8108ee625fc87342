// Compiler-dependent words. No torch here: device code includes this too.
#pragma once

// Public symbols of libhyenarec_ops.so; everything else may be built with -fvisibility=hidden.
#if defined(_WIN32)
#define HYENAREC_API
#else
#define HYENAREC_API __attribute__((visibility("default")))
#endif

// Maths shared by the CPU and the GPU.
#if defined(__CUDACC__)
#define HYENAREC_HOST_DEVICE __host__ __device__
#else
#define HYENAREC_HOST_DEVICE
#endif
