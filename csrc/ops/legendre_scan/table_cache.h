// Keeps the tables of the last few horizons. No torch here.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>

#include "../common/lru_cache.h"

namespace hyenarec::detail {

// Of Tables that say with reach() how many events they cover.
template <typename Tables>
class LegendreTableCache {
 public:
  using Shared = std::shared_ptr<const Tables>;

  // Tables that reach `length` events at least; build(length) makes them. From any thread.
  template <typename Build>
  Shared get(int64_t horizon, int64_t chunk, int64_t num_coeffs, int64_t length, const Build& build) {
    return cache_.get(
        {horizon, chunk, num_coeffs}, /*keep_for_ever=*/false,
        [&](const Tables& kept) { return kept.reach() >= length; },
        [&](const Shared& kept) {
          // Twice as far as before, so that ever longer histories don't build the tables each time.
          const int64_t further = kept ? 2 * kept->reach() : 0;
          return std::make_shared<const Tables>(build(std::min(std::max(length, further), horizon)));
        });
  }

 private:
  static constexpr size_t kMaxTables = 16;  // a model needs one or two
  LruCache<std::array<int64_t, 3>, const Tables> cache_{kMaxTables};
};

}  // namespace hyenarec::detail
