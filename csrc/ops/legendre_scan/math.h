// Legendre polynomials on the lags of a kernel, for host and device. No torch here.
#pragma once

#include <cstdint>

#include "../common/macros.h"

namespace hyenarec {

// u(lag) = 2 lag / (horizon - 1) - 1, the place of a lag in [-1, 1]; -1 when horizon = 1.
HYENAREC_HOST_DEVICE inline double legendre_position(int64_t lag, int64_t horizon) {
  return horizon > 1 ? 2.0 * static_cast<double>(lag) / static_cast<double>(horizon - 1) - 1.0 : -1.0;
}

// P_{n+1}(u) from P_n(u) and P_{n-1}(u) by Bonnet's recurrence (n + 1) P_{n+1} = (2n + 1) u P_n - n P_{n-1},
// with ratio = n/(n+1): u P_n + ratio (u P_n - P_{n-1}), exact at u = +-1. Start with current = P_0 = 1,
// previous = anything finite at degree 0. Use double: single precision loses digits as the degree grows (4e-6
// relative at degree 32).
template <typename scalar_t>
HYENAREC_HOST_DEVICE constexpr scalar_t legendre_recurrence(
    scalar_t ratio, scalar_t u, scalar_t current, scalar_t previous) {
  const scalar_t product = u * current;
  return product + ratio * (product - previous);
}

// The same, for a caller that doesn't keep a table of ratios.
template <typename scalar_t>
HYENAREC_HOST_DEVICE constexpr scalar_t legendre_next(
    int64_t degree, scalar_t u, scalar_t current, scalar_t previous) {
  return legendre_recurrence(
      static_cast<scalar_t>(degree) / static_cast<scalar_t>(degree + 1), u, current, previous);
}

}  // namespace hyenarec
