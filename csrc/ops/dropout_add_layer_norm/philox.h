// The counter-based random numbers that dropout draws, on every device: Philox4x32-10 of Salmon et al.,
// "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. Its bits are a function of a key (the seed) and a
// counter, so that any thread can draw those of any element, once more in the backward pass, without a state.
//
// Element i of an activation has 16 bits: half i % 2 (the lower one first) of word i % 8 / 2 of the block
// whose counter is i / 8. random_levels.h draws the same bits in vectors.
#pragma once

#include <cstdint>

#include "../common/macros.h"

namespace hyenarec {

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;  // what a round adds to the key

// Elements that share a block of 128 bits, and the numbers that 16 bits tell apart.
constexpr int kLevelsPerBlock = 8;
constexpr int kNumLevels = 1 << 16;

struct PhiloxBlock {
  uint32_t word[4];
};

HYENAREC_HOST_DEVICE inline PhiloxBlock philox(const PhiloxBlock& counter, uint32_t key0, uint32_t key1) {
  uint32_t x0 = counter.word[0], x1 = counter.word[1], x2 = counter.word[2], x3 = counter.word[3];
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = uint64_t{kPhiloxMultiplier0} * x0;
    const uint64_t product1 = uint64_t{kPhiloxMultiplier1} * x2;
    x0 = static_cast<uint32_t>(product1 >> 32) ^ x1 ^ key0;
    x1 = static_cast<uint32_t>(product1);
    x2 = static_cast<uint32_t>(product0 >> 32) ^ x3 ^ key1;
    x3 = static_cast<uint32_t>(product0);
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return {{x0, x1, x2, x3}};
}

// The block of the elements 8 index to 8 index + 7, and element i's level in its block.
HYENAREC_HOST_DEVICE inline PhiloxBlock random_block(uint64_t seed, uint64_t index) {
  const PhiloxBlock counter{{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0}};
  return philox(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}
HYENAREC_HOST_DEVICE inline uint32_t level_in(const PhiloxBlock& block, int64_t element) {
  // Chosen by bits, since an array whose index is not known when compiled would leave a GPU's registers.
  const uint32_t front = element & 2 ? block.word[1] : block.word[0];
  const uint32_t back = element & 2 ? block.word[3] : block.word[2];
  return (element & 4 ? back : front) >> (element & 1 ? 16 : 0) & 0xffffu;
}

}  // namespace hyenarec
