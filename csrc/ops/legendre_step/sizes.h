// The sizes of a stream's state. No torch here.
#pragma once

#include <cstdint>

namespace hyenarec {

// N and C, from the shapes of state and weights.
struct LegendreStepSizes {
  int64_t num_coeffs;
  int64_t chunk;
};

}  // namespace hyenarec
