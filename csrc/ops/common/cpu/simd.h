// Vector code for the CPU kernels, without a compiler flag: run_with_widest_vectors compiles its body for
// baseline, AVX2 and AVX-512 machines, and calls the widest that this machine has. No torch here.
#pragma once

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <type_traits>
#include <utility>

// Other compilers and machines know other ways.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__) && __GNUC__ >= 12
#define HYENAREC_HAS_TARGETS
#endif

#define HYENAREC_INLINE inline __attribute__((always_inline))
// After a lambda's parameters.
#define HYENAREC_INLINE_LAMBDA __attribute__((always_inline))

// Eight-lane vectors stay inside inlined functions, so their calling convention never matters.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace hyenarec::simd {

// The compiler's own vectors: they take arithmetic operators and become whatever registers the machine has.
template <typename scalar_t, int lanes = 8>
struct VectorOf {
  typedef scalar_t type __attribute__((vector_size(lanes * sizeof(scalar_t))));
};
template <typename scalar_t, int lanes = 8>
using Vector = typename VectorOf<scalar_t, lanes>::type;

template <typename V>
using LaneOf = std::remove_reference_t<decltype(std::declval<V&>()[0])>;
template <typename V>
constexpr int kLanes = sizeof(V) / sizeof(LaneOf<V>);

// bfloat16 in memory: the upper half of a float, rounded to nearest even and keeping NaN, as torch does.
struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  explicit BFloat16(float number) {
    const auto all = std::bit_cast<uint32_t>(number);
    const uint32_t rounded = (all + 0x7fffu + ((all >> 16) & 1u)) >> 16;
    bits = static_cast<uint16_t>(number != number ? 0x7fc0u : rounded);
  }
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// In what one computes with numbers that lie in memory as scalar_t.
template <typename scalar_t>
using compute_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

template <typename V>
HYENAREC_INLINE V load_lanes(const void* from) {
  V lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

// As what one computes with.
template <int lanes = 8, typename scalar_t>
HYENAREC_INLINE Vector<compute_t<scalar_t>, lanes> load(const scalar_t* from) {
  if constexpr (std::is_same_v<scalar_t, BFloat16>) {
    const auto halves = load_lanes<Vector<uint16_t, lanes>>(from);
    return (Vector<float, lanes>)(__builtin_convertvector(halves, Vector<uint32_t, lanes>) << 16);
  } else {
    return load_lanes<Vector<scalar_t, lanes>>(from);
  }
}

// What lanes become in memory: themselves, or bfloat16.
template <typename scalar_t, typename V>
HYENAREC_INLINE auto stored_as(const V& lanes) {
  if constexpr (std::is_same_v<scalar_t, BFloat16>) {
    using Bits = Vector<uint32_t, kLanes<V>>;
    const auto bits = (Bits)lanes;
    const auto rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const auto is_nan = (Bits)(lanes != lanes);
    return __builtin_convertvector((rounded & ~is_nan) | (0x7fc0u & is_nan), Vector<uint16_t, kLanes<V>>);
  } else {
    return lanes;
  }
}

template <typename V, typename scalar_t>
HYENAREC_INLINE void store(const V& lanes, scalar_t* to) {
  const auto stored = stored_as<scalar_t>(lanes);
  std::memcpy(to, &stored, sizeof(stored));
}

// The same past the cache, where the machine can; `to` is aligned like what is stored. For other threads it
// is there only after end_stores_past_cache.
template <typename V, typename scalar_t>
HYENAREC_INLINE void store_past_cache(const V& lanes, scalar_t* to) {
#if defined(__x86_64__) && defined(__GNUC__)
  const auto stored = stored_as<scalar_t>(lanes);
  typedef decltype(stored_as<scalar_t>(lanes)) Aliased __attribute__((may_alias));
  // By name: functions of intrinsics can't be inlined before it is known for which machine. VEX encoded where
  // V is.
  if constexpr (sizeof(stored) < 16)  // no such instruction
    store(lanes, to);
  else if constexpr (sizeof(V) == 16)
    asm("movntps %1, %0" : "=m"(*reinterpret_cast<Aliased*>(to)) : "x"(stored));
  else
    asm("vmovntps %1, %0" : "=m"(*reinterpret_cast<Aliased*>(to)) : "v"(stored));
#else
  store(lanes, to);
#endif
}
inline void end_stores_past_cache() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_ia32_sfence();
#endif
}

// The first `count` lanes from memory, the others zero; and the first `count` lanes to memory.
template <typename V, typename scalar_t>
HYENAREC_INLINE V load_first(const scalar_t* from, int64_t count) {
  if (count == kLanes<V>) return load<kLanes<V>>(from);
  scalar_t lanes[kLanes<V>] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = from[i];
  return load<kLanes<V>>(lanes);
}
template <typename V, typename scalar_t>
HYENAREC_INLINE void store_first(const V& value, scalar_t* to, int64_t count) {
  if (count == kLanes<V>) return store(value, to);
  scalar_t lanes[kLanes<V>];
  store(value, lanes);
  for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
}

// The lanes themselves, as a product that is rounded before anything is added to it. Otherwise the compiler
// fuses the two where they stand in one branch, and the same numbers come out differently elsewhere.
template <typename V>
HYENAREC_INLINE V rounded(const V& product) {
#if defined(HYENAREC_HAS_TARGETS)
  return __builtin_assoc_barrier(product);
#else
  return product;
#endif
}

// Calls visit(i, lanes) for vectors that cover [first, count): of `lanes` numbers, an integral constant, then
// of half as many, and so on for the rest.
template <int lanes, typename Visit>
HYENAREC_INLINE void for_each_vector(int64_t first, int64_t count, const Visit& visit) {
  for (; first + lanes <= count; first += lanes) visit(first, std::integral_constant<int, lanes>{});
  if constexpr (lanes > 1) for_each_vector<lanes / 2>(first, count, visit);
}

// The sum of all lanes: of the halves' sum, and so on, always in this order.
template <typename V>
HYENAREC_INLINE LaneOf<V> sum_of_lanes(const V& lanes) {
  if constexpr (kLanes<V> == 1) {
    return lanes[0];
  } else {
    using Half = Vector<LaneOf<V>, kLanes<V> / 2>;
    Half halves[2];
    std::memcpy(halves, &lanes, sizeof(lanes));
    return sum_of_lanes(halves[0] + halves[1]);
  }
}

// HYENAREC_SHUFFLE(a, b, ...): lanes of two vectors; needs a type `Mask`, the vector of integers of their
// shape.
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

// One binary for all machines: run_with_widest_vectors(body) calls body(integral constant bytes), where a
// vector register holds so many bytes, within a function that is compiled for that machine. The body and all
// it calls must be HYENAREC_INLINE.
using Bytes16 = std::integral_constant<int, 16>;
using Bytes32 = std::integral_constant<int, 32>;
using Bytes64 = std::integral_constant<int, 64>;

#if defined(HYENAREC_HAS_TARGETS)
template <typename Body>
__attribute__((noinline, target("arch=x86-64-v4"))) void run_with_avx512(const Body& body) {
  body(Bytes64{});
}
template <typename Body>
__attribute__((noinline, target("arch=x86-64-v3"))) void run_with_avx2(const Body& body) {
  body(Bytes32{});
}
#endif

// Bytes of the widest vector register to use: the machine's, 64, 32, or 16 on any, or less where the
// environment says ATEN_CPU_CAPABILITY=avx2 or =default, which torch's own kernels heed, too.
inline int widest_vector_bytes() {
  static const int bytes = [] {
    [[maybe_unused]] const char* set = std::getenv("ATEN_CPU_CAPABILITY");
    [[maybe_unused]] const std::string_view wanted = set ? set : "";
#if defined(HYENAREC_HAS_TARGETS)
    if (wanted == "default") return 16;
    if (wanted != "avx2" && __builtin_cpu_supports("x86-64-v4")) return 64;
    if (__builtin_cpu_supports("x86-64-v3")) return 32;
#endif
    return 16;
  }();
  return bytes;
}

template <typename Body>
void run_with_widest_vectors(const Body& body) {
#if defined(HYENAREC_HAS_TARGETS)
  if (widest_vector_bytes() == 64) return run_with_avx512(body);
  if (widest_vector_bytes() == 32) return run_with_avx2(body);
#endif
  body(Bytes16{});
}

}  // namespace hyenarec::simd
