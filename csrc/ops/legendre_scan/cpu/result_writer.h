// Whether a call's results go past the cache: where they are more than a cache can be expected to hold until
// they are read. Then the processor neither fetches the lines that they overwrite nor
// gives up for them what is still to be read.
#pragma once

#include <cstdint>
#include <initializer_list>

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

}  // namespace hyenarec::scan
