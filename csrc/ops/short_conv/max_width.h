// The most taps that a short filter may have, on every device. No torch here.
#pragma once

#include <cstdint>

namespace hyenarec {

constexpr int64_t kShortConvMaxWidth = 8;

}  // namespace hyenarec
