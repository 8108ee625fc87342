// Vector code for the CPU kernels, without a compiler flag: functions marked HYENAREC_SIMD are compiled for
// baseline, AVX2 and AVX-512 machines, and the loader picks one.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

// Sanitizers start after the loader's choice, and other compilers and machines know other ways.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__) && \
    __GNUC__ >= 12 && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define HYENAREC_SIMD __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define HYENAREC_SIMD
#endif

#define HYENAREC_INLINE inline __attribute__((always_inline))

// Eight-lane vectors stay inside inlined functions, so their calling convention never matters.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace hyenarec::simd {

// The compiler's own vectors: they take arithmetic operators and become whatever registers the machine has.
template <typename scalar_t>
struct VectorOf {
  typedef scalar_t type __attribute__((vector_size(8 * sizeof(scalar_t))));
};
template <typename scalar_t>
using Vector = typename VectorOf<scalar_t>::type;

template <typename lanes_t, typename scalar_t>
HYENAREC_INLINE lanes_t load_lanes(const scalar_t* from) {
  lanes_t lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

HYENAREC_INLINE Vector<float> load(const float* from) { return load_lanes<Vector<float>>(from); }
HYENAREC_INLINE Vector<double> load(const double* from) { return load_lanes<Vector<double>>(from); }
// bfloat16 is the upper half of a float.
HYENAREC_INLINE Vector<float> load(const c10::BFloat16* from) {
  return (Vector<float>)(__builtin_convertvector(load_lanes<Vector<uint16_t>>(from), Vector<uint32_t>) << 16);
}

HYENAREC_INLINE void store(const Vector<float>& lanes, float* to) { std::memcpy(to, &lanes, sizeof(lanes)); }
HYENAREC_INLINE void store(const Vector<double>& lanes, double* to) {
  std::memcpy(to, &lanes, sizeof(lanes));
}
// Rounds to nearest even and keeps NaN, as c10::BFloat16 does.
HYENAREC_INLINE void store(const Vector<float>& lanes, c10::BFloat16* to) {
  const auto bits = (Vector<uint32_t>)lanes;
  const auto rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const auto is_nan = (Vector<uint32_t>)(lanes != lanes);
  const auto halves = __builtin_convertvector((rounded & ~is_nan) | (0x7fc0u & is_nan), Vector<uint16_t>);
  std::memcpy(to, &halves, sizeof(halves));
}

#if defined(__clang__)
#define HYENAREC_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define HYENAREC_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Mask{__VA_ARGS__})
#endif

// rows[i][j] becomes rows[j][i]: exchange the off-diagonal 1x1, then 2x2, then 4x4 blocks.
template <typename compute_t>
HYENAREC_INLINE void transpose(Vector<compute_t> (&rows)[8]) {
  using Mask [[maybe_unused]] = Vector<std::conditional_t<sizeof(compute_t) == 8, int64_t, int32_t>>;
  for (int i = 0; i < 8; i += 2) {
    const auto a = rows[i], b = rows[i + 1];
    rows[i] = HYENAREC_SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
    rows[i + 1] = HYENAREC_SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  }
  for (int i : {0, 1, 4, 5}) {
    const auto a = rows[i], b = rows[i + 2];
    rows[i] = HYENAREC_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
    rows[i + 2] = HYENAREC_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; ++i) {
    const auto a = rows[i], b = rows[i + 4];
    rows[i] = HYENAREC_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    rows[i + 4] = HYENAREC_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

#undef HYENAREC_SHUFFLE

}  // namespace hyenarec::simd
