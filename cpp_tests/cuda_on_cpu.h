// Runs CUDA kernels on the CPU, without a CUDA toolkit: include this first, then a .cuh, and call launch().
//
// Blocks run one after another, each with one CPU thread for every CUDA thread, so that ThreadSanitizer sees
// a missing barrier and AddressSanitizer a bad index, and the results can be compared with an oracle. It is
// no substitute for a GPU: speed, the memory model between blocks, register and shared memory limits are not
// checked.
//
// What it is strict about: a barrier that part of a block never reaches, a shuffle that part of a warp never
// reaches or that reads a lane that doesn't exist, and shared memory read before it is written (it starts as
// NaN). Where it is blind: a shuffle orders memory within its warp here, which it doesn't on a GPU; and half
// a warp in
// __syncthreads beside half in a shuffle hangs until the test's time limit.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline thread_local dim3 threadIdx(0, 0, 0), blockIdx(0, 0, 0), blockDim, gridDim;

namespace cuda_on_cpu {

constexpr unsigned int kWarpSize = 32;
constexpr unsigned int kMaxThreads = 1024;

// The order in which blocks run. A kernel whose result depends on it has a race between blocks, which
// ThreadSanitizer can't see here: tests compare both orders.
enum class BlockOrder { ascending, descending };

// A barrier of a fixed group of threads. A thread that leaves the kernel while others wait, or before others
// come, is an error: the barrier breaks and everyone who waits throws.
class Barrier {
 public:
  explicit Barrier(unsigned int threads) : threads_(threads) {}

  void wait() {
    wait([] {});
  }

  // The last to come calls `last_act` before all go on.
  template <typename Act>
  void wait(const Act& last_act) {
    const uint32_t phase = phase_.load();
    // Counting this thread in and seeing who has left is one step: a moment later the others may have come,
    // gone on and left, as they may.
    const uint32_t before = counts_.fetch_add(1);
    if (before >= kLeft) {
      break_up();
    } else if (before + 1 == threads_) {
      last_act();
      counts_ = 0;
      release();
    } else {
      phase_.wait(phase);
    }
    if (broken_)
      throw std::runtime_error("cuda_on_cpu: some threads left the kernel while others were to wait");
  }

  void leave() {
    if (counts_.fetch_add(kLeft) % kLeft > 0) break_up();
  }

  void reset() {
    counts_ = 0;
    broken_ = false;
  }

 private:
  void break_up() {
    broken_ = true;
    release();
  }
  void release() {
    ++phase_;
    phase_.notify_all();
  }

  static constexpr uint32_t kLeft = 1 << 16;  // more than the threads of a block

  const unsigned int threads_;
  // Threads that wait, plus kLeft times those that have left the kernel.
  std::atomic<uint32_t> counts_ = 0, phase_ = 0;
  std::atomic<bool> broken_ = false;
};

// The exchange buffer of a warp's shuffles.
struct Warp {
  explicit Warp(unsigned int lanes_) : lanes(lanes_), barrier(lanes_) {}
  const unsigned int lanes;
  Barrier barrier;
  alignas(16) unsigned char slot[kWarpSize][16];
};

// The block that runs now, as its threads see it.
struct Block {
  Block(unsigned int threads, size_t shared_bytes_)
      : barrier(threads), shared_bytes(shared_bytes_), shared(new unsigned char[shared_bytes_]) {
    for (unsigned int first = 0; first < threads; first += kWarpSize)
      warps.push_back(std::make_unique<Warp>(std::min(kWarpSize, threads - first)));
  }

  void start() {
    failed = error != nullptr;
    barrier.reset();
    for (auto& warp : warps) warp->barrier.reset();
    std::memset(shared.get(), 0xff, shared_bytes);  // NaN in every floating-point type
  }

  Barrier barrier;
  std::exception_ptr error;  // of some thread
  bool failed = false;       // as of the start of this block, the same for all threads
  std::vector<std::unique_ptr<Warp>> warps;
  const size_t shared_bytes;
  // On the heap and of the exact size, so that AddressSanitizer sees an index beyond it.
  const std::unique_ptr<unsigned char[]> shared;
};

inline thread_local Block* current_block = nullptr;

inline void* shared_memory() { return current_block->shared.get(); }

inline unsigned int thread_rank() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
inline unsigned int lane() { return thread_rank() % kWarpSize; }
inline Warp& warp() { return *current_block->warps[thread_rank() / kWarpSize]; }

inline void require_full_mask(unsigned int mask) {
  if (mask != 0xffffffffu) throw std::runtime_error("cuda_on_cpu: warp functions take the full mask only");
}

// What lane `source` passed. Every lane of the warp must call this.
template <typename T>
T exchange(unsigned int mask, T value, unsigned int source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(Warp::slot[0]));
  require_full_mask(mask);
  Warp& mine = warp();
  if (source >= mine.lanes)
    throw std::runtime_error("cuda_on_cpu: a shuffle reads a lane that doesn't exist");
  std::memcpy(mine.slot[lane()], &value, sizeof(T));
  mine.barrier.wait();
  std::memcpy(&value, mine.slot[source], sizeof(T));
  mine.barrier.wait();
  return value;
}

// CPU threads that wait for kernels: making new ones for each launch would take longer than most kernels
// here.
class ThreadPool {
 public:
  static ThreadPool& instance() {
    static ThreadPool pool;
    return pool;
  }

  // Calls task(0), ... task(count - 1), each on a thread of its own, and returns when all have.
  void run(unsigned int count, const std::function<void(unsigned int)>& task) {
    while (threads_.size() < count) {
      const auto rank = static_cast<unsigned int>(threads_.size());
      threads_.emplace_back([this, rank, seen = launch_.load()] { work(rank, seen); });
    }
    start(count, &task);
    for (uint32_t left = left_; left > 0; left = left_) left_.wait(left);
  }

  ~ThreadPool() {
    start(0, nullptr);
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void start(unsigned int count, const std::function<void(unsigned int)>* task) {
    count_ = count;
    task_ = task;
    left_ = static_cast<uint32_t>(threads_.size());
    ++launch_;
    launch_.notify_all();
  }

  void work(unsigned int rank, uint32_t seen) {
    while (true) {
      launch_.wait(seen++);
      if (task_ == nullptr) return;
      if (rank < count_) (*task_)(rank);
      // Who has nothing to do says so, too: nobody may miss a launch.
      if (--left_ == 0) left_.notify_one();
    }
  }

  std::vector<std::thread> threads_;
  unsigned int count_ = 0;
  const std::function<void(unsigned int)>* task_ = nullptr;
  std::atomic<uint32_t> launch_ = 0, left_ = 0;
};

// Whether CUDA_ON_CPU_REMOVED_BARRIER, as in "fft_conv/cuda.cuh:37", names this place.
inline bool is_removed_barrier(const std::string& file, int line) {
  const char* removed = std::getenv("CUDA_ON_CPU_REMOVED_BARRIER");
  return removed != nullptr && (file + ":" + std::to_string(line)).ends_with("/" + std::string(removed));
}

// blockIdx from a running number, x fastest.
inline dim3 block_index(uint64_t number, dim3 grid) {
  const uint64_t row = number / grid.x;
  return dim3(
      static_cast<unsigned int>(number % grid.x), static_cast<unsigned int>(row % grid.y),
      static_cast<unsigned int>(row / grid.y));
}

// Runs kernel<<<grid, block, shared_bytes>>>(arguments...) to its end. Throws what a thread threw.
template <typename... Parameters, typename... Arguments>
void launch(
    dim3 grid, dim3 block, size_t shared_bytes, BlockOrder order, void (*kernel)(Parameters...),
    const Arguments&... arguments) {
  const unsigned int threads = block.x * block.y * block.z;
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  if (threads < 1 || threads > kMaxThreads)
    throw std::invalid_argument("cuda_on_cpu: 1 to 1024 threads a block");
  if (blocks < 1 || grid.y > 65535 || grid.z > 65535) throw std::invalid_argument("cuda_on_cpu: bad grid");

  Block state(threads, shared_bytes);
  Barrier between_blocks(threads);
  std::mutex error_mutex;

  const auto run_thread = [&](unsigned int rank) {
    current_block = &state;
    blockDim = block;
    gridDim = grid;
    threadIdx = dim3(rank % block.x, rank / block.x % block.y, rank / block.x / block.y);
    for (uint64_t step = 0; step < blocks; ++step) {
      between_blocks.wait([&] { state.start(); });
      if (state.failed) return;
      blockIdx = block_index(order == BlockOrder::ascending ? step : blocks - 1 - step, grid);
      try {
        kernel(static_cast<Parameters>(arguments)...);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(error_mutex);
        state.error = std::current_exception();
      }
      warp().barrier.leave();
      state.barrier.leave();
    }
  };

  ThreadPool::instance().run(threads, run_thread);
  if (state.error) std::rethrow_exception(state.error);
}

// bfloat16 for machines without a CUDA toolkit: rounds to nearest even, as the GPU does.
class BFloat16 {
 public:
  BFloat16() = default;
  BFloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    bits_ = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
  operator float() const {
    const uint32_t bits = static_cast<uint32_t>(bits_) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }

 private:
  uint16_t bits_;
};
using Half = _Float16;

}  // namespace cuda_on_cpu

// A macro, so that a test of the tests can take one barrier away.
#define __syncthreads()                                                                 \
  do {                                                                                  \
    static const bool is_removed = cuda_on_cpu::is_removed_barrier(__FILE__, __LINE__); \
    if (!is_removed) cuda_on_cpu::current_block->barrier.wait();                        \
  } while (false)
inline void __syncwarp(unsigned int mask = 0xffffffffu) {
  cuda_on_cpu::require_full_mask(mask);
  cuda_on_cpu::warp().barrier.wait();
}

template <typename T>
T __shfl_sync(unsigned int mask, T value, int source) {
  return cuda_on_cpu::exchange(mask, value, static_cast<unsigned int>(source) % cuda_on_cpu::kWarpSize);
}
template <typename T>
T __shfl_xor_sync(unsigned int mask, T value, int lane_mask) {
  return cuda_on_cpu::exchange(mask, value, cuda_on_cpu::lane() ^ static_cast<unsigned int>(lane_mask));
}
// Lanes beyond either end keep their own value.
template <typename T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int distance) {
  const unsigned int source = cuda_on_cpu::lane() + distance;
  return cuda_on_cpu::exchange(mask, value, source < cuda_on_cpu::kWarpSize ? source : cuda_on_cpu::lane());
}
template <typename T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int distance) {
  const unsigned int lane = cuda_on_cpu::lane();
  return cuda_on_cpu::exchange(mask, value, distance <= lane ? lane - distance : lane);
}
