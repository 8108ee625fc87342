// Keeps the tables of the last few horizons. No torch here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <utility>

namespace hyenarec::detail {

// Of Tables with horizon, chunk, num_coeffs and chunks that say what they are for and how far they reach.
template <typename Tables>
class LegendreTableCache {
 public:
  using Shared = std::shared_ptr<const Tables>;

  // Tables that reach `length` events at least; build(length) makes them. From any thread.
  template <typename Build>
  Shared get(int64_t horizon, int64_t chunk, int64_t num_coeffs, int64_t length, const Build& build) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = std::find_if(tables_.begin(), tables_.end(), [&](const Shared& kept) {
      return kept->horizon == horizon && kept->chunk == chunk && kept->num_coeffs == num_coeffs;
    });
    Shared tables = found == tables_.end() ? nullptr : *found;
    if (found != tables_.end()) tables_.erase(found);
    const int64_t reach = tables ? tables->reach() : 0;
    if (!tables || reach < length) {
      // Twice as far as before, so that ever longer histories don't build the tables each time.
      tables = std::make_shared<const Tables>(build(std::min(std::max(length, 2 * reach), horizon)));
    }
    tables_.push_front(tables);
    if (tables_.size() > kMost) tables_.pop_back();
    return tables;
  }

 private:
  static constexpr size_t kMost = 16;  // a model needs one or two

  std::mutex mutex_;
  std::list<Shared> tables_;  // latest first
};

}  // namespace hyenarec::detail
