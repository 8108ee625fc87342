// On which threads a computation runs is its caller's business. No torch here.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>

namespace hyenarec {

struct Threads {
  int64_t count = 1;
  // Calls body() `count` times, each time on a thread of its own, and returns after the last one has.
  void (*run)(int64_t count, const std::function<void()>& body) =
      [](int64_t, const std::function<void()>& body) { body(); };
};

// Calls run(task, memory) for each task in [0, count): each thread takes the next one when it is done with
// its last, so that the largest should come first. A thread's tasks share one Memory.
template <typename Memory, typename Run>
void run_tasks(const Threads& threads, int64_t count, const Run& run) {
  if (count <= 0) return;
  std::atomic<int64_t> next{0};
  threads.run(std::min(count, threads.count), [&] {
    Memory memory;
    for (int64_t task = next++; task < count; task = next++) run(task, memory);
  });
}

}  // namespace hyenarec
