// A cache that forgets what was used longest ago. No torch, no CUDA here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace hyenarec {

// Values by key, made when first asked for; from any thread. A value that is dropped lives until its last
// user lets go of it. A CUDA graph uses what it was captured with at each replay, and says nothing of its
// end: such a value is kept for ever, beside the `most` others.
template <typename Key, typename Value>
class LruCache {
 public:
  using Shared = std::shared_ptr<Value>;

  explicit LruCache(size_t most) : most_(most) {}

  // The value of `key`, from make(), which returns a Shared, if it isn't there.
  template <typename Make>
  Shared get(const Key& key, bool keep_for_ever, const Make& make) {
    return get(
        key, keep_for_ever, [](const Value&) { return true; }, [&](const Shared&) { return make(); });
  }
  // The same for a value that may not be enough: then make(value) makes a better one. It gets nullptr if
  // there is none.
  template <typename IsEnough, typename Make>
  Shared get(const Key& key, bool keep_for_ever, const IsEnough& is_enough, const Make& make) {
    Shared dropped;  // dies after the lock: that may wait for the GPU
    const std::lock_guard<std::mutex> lock(mutex_);
    auto found = entries_.find(key);
    const bool is_new = found == entries_.end();
    if (is_new) {
      found = entries_.emplace(key, Entry{make(nullptr), 0, false}).first;
    } else if (!is_enough(*found->second.value)) {
      dropped = std::exchange(found->second.value, make(found->second.value));
    }
    Entry& entry = found->second;
    entry.last_use = ++uses_;
    entry.is_kept = entry.is_kept || keep_for_ever;
    Shared value = entry.value;
    if (is_new) dropped = drop_one_too_many();
    return value;
  }

 private:
  struct Entry {
    Shared value;
    uint64_t last_use;
    bool is_kept;
  };

  // A call adds one value at most.
  Shared drop_one_too_many() {
    const auto may_go = [](const auto& item) { return !item.second.is_kept; };
    if (static_cast<size_t>(std::count_if(entries_.begin(), entries_.end(), may_go)) <= most_) return nullptr;
    const auto age = [](const auto& item) { return std::pair(item.second.is_kept, item.second.last_use); };
    const auto oldest = std::min_element(
        entries_.begin(), entries_.end(), [&](const auto& a, const auto& b) { return age(a) < age(b); });
    Shared dropped = std::move(oldest->second.value);
    entries_.erase(oldest);
    return dropped;
  }

  const size_t most_;
  std::mutex mutex_;
  uint64_t uses_ = 0;
  std::map<Key, Entry> entries_;
};

}  // namespace hyenarec
