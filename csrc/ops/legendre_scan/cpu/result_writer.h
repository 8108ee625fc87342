// How a task writes its rows of results. Where a call writes more than a cache can be expected to hold until
// the results are read, they go past it: then the processor neither fetches the lines that they overwrite nor
// gives up for them what is still to be read.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "../../common/cpu/simd.h"
#include "look_ahead.h"

namespace hyenarec::scan {

// Bytes of a call's results up to which they stay in the cache. Measured with a matrix product that reads
// them right afterwards (32 MiB of third level cache): 4 MiB are better off in it, 8 MiB are not.
constexpr int64_t kMaxCachedBytes = 6 << 20;

// Where a result lies; `bytes` is 0 if it isn't wanted.
struct Result {
  const void* data;
  int64_t bytes, row_bytes;
};

// Whether a call that writes these results writes them past the cache. Their rows must fill its lines.
inline bool go_past_cache(std::initializer_list<Result> results) {
  int64_t bytes = 0;
  for (const Result& result : results) {
    if (result.bytes == 0) continue;
    if (reinterpret_cast<uintptr_t>(result.data) % kLine != 0 || result.row_bytes % kLine != 0) return false;
    bytes += result.bytes;
  }
  return bytes > kMaxCachedBytes;
}

// A task's writer of V, vectors of the numbers that are computed with, as scalar_t. It lives as long as the
// task.
template <typename V, typename scalar_t>
class ResultWriter {
 public:
  // Of every row the task writes `vectors` neighbouring vectors. `past_cache` is go_past_cache's answer.
  HYENAREC_INLINE ResultWriter(bool past_cache, int64_t vectors)
      : past_cache_(past_cache && vectors * kBytes % kLine == 0) {}
  ResultWriter(const ResultWriter&) = delete;
  HYENAREC_INLINE ~ResultWriter() {
    if (past_cache_) simd::end_stores_past_cache();
  }

  // The first `count` lanes.
  HYENAREC_INLINE void write(const V& value, scalar_t* to, int64_t count) const {
    if (past_cache_)
      simd::store_past_cache(value, to);
    else
      simd::store_first(value, to, count);
  }
  // Tells a LookAhead about rows that will be written.
  HYENAREC_INLINE void watch(const scalar_t* first, int64_t stride, int64_t bytes, LookAhead& ahead) const {
    if (past_cache_)
      ahead.written_past_cache(first, stride);
    else
      ahead.written(first, stride, bytes);
  }

 private:
  static constexpr int64_t kBytes = simd::kLanes<V> * sizeof(scalar_t);
  const bool past_cache_;
};

}  // namespace hyenarec::scan
