// The cache of what kernels need beside their arguments: what it keeps and what it drops.
#include "ops/common/lru_cache.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <thread>
#include <vector>

namespace {

using Cache = hyenarec::LruCache<int, const int>;

// Counts what is made.
class Maker {
 public:
  std::shared_ptr<const int> get(Cache& cache, int key, bool keep_for_ever = false) {
    return cache.get(key, keep_for_ever, [&] {
      ++made;
      return std::make_shared<const int>(10 * key);
    });
  }
  // Whether it had to be made.
  bool is_new(Cache& cache, int key) {
    const int before = made;
    get(cache, key);
    return made > before;
  }
  int made = 0;
};

TEST(LruCache, MakesAValueOnce) {
  Cache cache(2);
  Maker maker;
  const auto first = maker.get(cache, 1);
  EXPECT_EQ(*first, 10);
  EXPECT_EQ(maker.get(cache, 1), first);
  EXPECT_EQ(maker.made, 1);
}

TEST(LruCache, MakesABetterValueOfOneThatIsNotEnough) {
  Cache cache(2);
  const auto get = [&](int least) {
    return cache.get(
        1, false, [&](const int& value) { return value >= least; },
        [&](const std::shared_ptr<const int>& old) {
          return std::make_shared<const int>(least + (old ? 100 : 0));
        });
  };
  const auto first = get(10);
  EXPECT_EQ(*first, 10);
  EXPECT_EQ(get(9), first);
  EXPECT_EQ(*get(11), 111);
  EXPECT_EQ(*get(10), 111);
  EXPECT_EQ(first.use_count(), 1);
}

TEST(LruCache, DropsWhatWasUsedLongestAgo) {
  Cache cache(2);
  Maker maker;
  maker.get(cache, 1);
  const std::weak_ptr<const int> second = maker.get(cache, 2);
  maker.get(cache, 1);
  EXPECT_FALSE(second.expired());
  maker.get(cache, 3);
  EXPECT_TRUE(second.expired());
  EXPECT_FALSE(maker.is_new(cache, 1));
  EXPECT_FALSE(maker.is_new(cache, 3));
  EXPECT_TRUE(maker.is_new(cache, 2));
}

TEST(LruCache, LeavesADroppedValueToItsUsers) {
  Cache cache(1);
  Maker maker;
  const auto first = maker.get(cache, 1);
  maker.get(cache, 2);
  EXPECT_EQ(first.use_count(), 1);
  EXPECT_EQ(*first, 10);
}

TEST(LruCache, KeepsForEverWhatItIsToldTo) {
  Cache cache(2);
  Maker maker;
  maker.get(cache, 1, true);
  maker.get(cache, 2);
  maker.get(cache, 2, true);  // only now
  for (int key = 10; key < 20; ++key) maker.get(cache, key);
  EXPECT_FALSE(maker.is_new(cache, 1));
  EXPECT_FALSE(maker.is_new(cache, 2));
  // Once kept, kept: also after a use that would not ask for it. And these two don't count among the two
  // others.
  EXPECT_FALSE(maker.is_new(cache, 18));
  EXPECT_FALSE(maker.is_new(cache, 19));
  EXPECT_TRUE(maker.is_new(cache, 17));
  EXPECT_FALSE(maker.is_new(cache, 1));
}

TEST(LruCache, DropsNothingForWhatItKeepsForEver) {
  Cache cache(1);
  Maker maker;
  maker.get(cache, 1);
  maker.get(cache, 2, true);
  EXPECT_FALSE(maker.is_new(cache, 1));
}

TEST(LruCache, HoldsNothingOfAFailedAttempt) {
  Cache cache(1);
  Maker maker;
  maker.get(cache, 1);
  const auto fail = []() -> std::shared_ptr<const int> { throw std::runtime_error("no memory"); };
  EXPECT_THROW(cache.get(2, true, fail), std::runtime_error);
  EXPECT_FALSE(maker.is_new(cache, 1));
  EXPECT_TRUE(maker.is_new(cache, 2));
}

TEST(LruCache, ServesThreads) {
  Cache cache(3);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&cache, &wrong, i] {
      for (int step = 0; step < 200; ++step) {
        const int key = (step * (i + 1)) % 7;
        const auto value = cache.get(key, key == 0, [&] { return std::make_shared<const int>(10 * key); });
        wrong[static_cast<size_t>(i)] += *value != 10 * key;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4));
}

}  // namespace
