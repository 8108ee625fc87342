// The 16 random bits of each element (see philox.h), drawn in vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/cpu/simd.h"
#include "philox.h"

namespace hyenarec::simd {

// Blocks that are drawn together: a lane of 64 bits each, since the product of two 32-bit words needs as
// many.
constexpr int kBlocksTogether = 8;
constexpr int kLevelsTogether = kBlocksTogether * kLevelsPerBlock;

// The levels of the blocks `first` to `first` + 7.
HYENAREC_INLINE void draw_levels(uint64_t seed, uint64_t first, uint16_t* levels) {
  using V = Vector<uint64_t, kBlocksTogether>;
  using Mask [[maybe_unused]] = V;
  constexpr uint64_t kLow = 0xffffffffu;
  const V index = V{0, 1, 2, 3, 4, 5, 6, 7} + first;
  V x0 = index & kLow, x1 = index >> 32, x2{}, x3{};
  uint64_t key0 = seed & kLow, key1 = seed >> 32;
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const V product0 = x0 * uint64_t{kPhiloxMultiplier0}, product1 = x2 * uint64_t{kPhiloxMultiplier1};
    x0 = (product1 >> 32) ^ x1 ^ key0;
    x1 = product1 & kLow;
    x2 = (product0 >> 32) ^ x3 ^ key1;
    x3 = product0 & kLow;
    key0 = (key0 + kPhiloxWeyl0) & kLow;
    key1 = (key1 + kPhiloxWeyl1) & kLow;
  }
  // Words of 16-bit halves lie in memory as they are counted: this is little-endian code.
  const V front = x0 | x1 << 32, back = x2 | x3 << 32;
  const V blocks[2] = {
      HYENAREC_SHUFFLE(front, back, 0, 8, 1, 9, 2, 10, 3, 11),
      HYENAREC_SHUFFLE(front, back, 4, 12, 5, 13, 6, 14, 7, 15)};
  std::memcpy(levels, blocks, sizeof(blocks));
}

// Levels of elements that are asked for in rising order, drawn some hundreds ahead.
class RandomLevels {
 public:
  explicit RandomLevels(uint64_t seed) : seed_(seed) {}

  // The levels of the elements from `first` on: `count`, and a vector's length more to read.
  HYENAREC_INLINE const uint16_t* at(int64_t first, int64_t count) {
    if (first + count > end_) draw(first, count);
    return levels_.data() + (first - begin_);
  }

 private:
  HYENAREC_INLINE void draw(int64_t first, int64_t count) {
    constexpr int64_t kAhead = 512;
    begin_ = first - first % kLevelsPerBlock;
    const int64_t wanted = std::max(kAhead, first + count - begin_);
    const int64_t drawn = (wanted + kLevelsTogether - 1) / kLevelsTogether * kLevelsTogether;
    end_ = begin_ + drawn;
    levels_.resize(drawn + kLevelsTogether);
    for (int64_t i = 0; i < drawn; i += kLevelsTogether)
      draw_levels(seed_, (begin_ + i) / kLevelsPerBlock, levels_.data() + i);
  }

  const uint64_t seed_;
  int64_t begin_ = 0, end_ = 0;
  std::vector<uint16_t> levels_;
};

}  // namespace hyenarec::simd
