// exp for the vectors of simd.h.
#pragma once

#include <array>
#include <cstdint>

#include "../common/cpu/simd.h"

namespace hyenarec::simd {

// How a scalar_t is made of bits, and ln 2 as a sum whose first part times any exponent is exact.
template <typename scalar_t>
struct ExponentialConstants;
template <>
struct ExponentialConstants<float> {
  using Bits = uint32_t;
  static constexpr int mantissa_bits = 23, bias = 127, degree = 7;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f, lowest = -87.33654f;
};
template <>
struct ExponentialConstants<double> {
  using Bits = uint64_t;
  static constexpr int mantissa_bits = 52, bias = 1023, degree = 13;
  static constexpr double ln2_high = 6.93147180369123816490e-1, ln2_low = 1.90821492927058770002e-10,
                          lowest = -708.39641853226408;
};

template <typename scalar_t, int degree>
constexpr std::array<scalar_t, degree + 1> inverse_factorials() {
  std::array<scalar_t, degree + 1> inverse{};
  double factorial = 1;
  for (int k = 0; k <= degree; ++k) {
    factorial *= k > 0 ? k : 1;
    inverse[k] = static_cast<scalar_t>(1 / factorial);
  }
  return inverse;
}

// e^x for x <= 0 to two units in the last place; 0 where it would be below the smallest normal number; NaN of
// NaN. x = n ln 2 + r with |r| <= ln 2 / 2: 2^n times the Taylor polynomial of e^r, whose rest is below
// rounding.
template <typename V>
HYENAREC_INLINE V exponential_of_negative(const V& x) {
  using scalar_t = LaneOf<V>;
  using Constants = ExponentialConstants<scalar_t>;
  using Bits = Vector<typename Constants::Bits, kLanes<V>>;
  constexpr auto coefficients = inverse_factorials<scalar_t, Constants::degree>();
  // Numbers of this size have no fraction, so adding it rounds; the integer is then in the low bits.
  constexpr auto magic = static_cast<scalar_t>(typename Constants::Bits{3} << (Constants::mantissa_bits - 1));
  const V shifted = x * scalar_t(1.44269504088896340736) + magic;
  const V n = shifted - magic;
  const V r = (x - n * Constants::ln2_high) - n * Constants::ln2_low;
  V polynomial = V{} + coefficients[Constants::degree];
#pragma GCC unroll 16
  for (int k = Constants::degree - 1; k >= 0; --k) polynomial = polynomial * r + coefficients[k];
  const V power = (V)(((Bits)shifted + Constants::bias) << Constants::mantissa_bits);
  return x < Constants::lowest ? V{} : polynomial * power;
}

}  // namespace hyenarec::simd
