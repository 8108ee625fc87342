// Rows that will be needed next, fetched into the cache a few at a time between the arithmetic on others. A
// chunk's rows lie together, but the next sequence's lie elsewhere, where no processor expects them: without
// this, waiting for them takes half as long as all the arithmetic of a forward pass.
//
// Their pages are looked up before, all at once. Until a page's address is known the processor can't do much
// else, but it looks up several at a time: met one by one, between rows, they take a tenth of a call (with
// pages of 4 KiB).
#pragma once

#include <cstdint>

#include "../../common/cpu/simd.h"

namespace hyenarec::scan {

constexpr int64_t kLine = 64;    // bytes of a cache line
constexpr int64_t kPage = 4096;  // bytes of the smallest page

class LookAhead {
 public:
  // `rows` are fetched in `calls` calls of fetch().
  HYENAREC_INLINE LookAhead(int64_t rows, int64_t calls)
      : left_(rows), rows_per_call_((rows + calls - 1) / calls) {}

  // Rows of `bytes` bytes, `stride` bytes apart, that will be read, or written, or written past the cache: of
  // those only the pages are of use.
  HYENAREC_INLINE void read(const void* first, int64_t stride, int64_t bytes) {
    reads_[num_reads_++] = {static_cast<const char*>(first), stride, bytes};
    look_up_pages(first, stride);
  }
  HYENAREC_INLINE void written(const void* first, int64_t stride, int64_t bytes) {
    writes_[num_writes_++] = {static_cast<const char*>(first), stride, bytes};
    look_up_pages(first, stride);
  }
  // `bytes` bytes that will be read, some of them with each row.
  HYENAREC_INLINE void read_array(const void* first, int64_t bytes) {
    if (left_ == 0) return;
    const int64_t bytes_per_row = (bytes + left_ - 1) / left_;
    read(first, bytes_per_row, bytes_per_row);
  }
  HYENAREC_INLINE void written_past_cache(const void* first, int64_t stride) const {
    look_up_pages(first, stride);
  }

  HYENAREC_INLINE void fetch() {
    for (int64_t row = 0; row < rows_per_call_ && left_ > 0; ++row, --left_) {
      for (int i = 0; i < num_reads_; ++i) fetch_next<0>(reads_[i]);
      for (int i = 0; i < num_writes_; ++i) fetch_next<1>(writes_[i]);
    }
  }

 private:
  // By fetching a line of each. Rows that share no page are not worth it: there are as many pages as rows.
  HYENAREC_INLINE void look_up_pages(const void* first, int64_t stride) const {
    if (stride >= kPage) return;
    const char* row = static_cast<const char*>(first);
    const char* const last = row + (left_ - 1) * stride;
    for (; row < last; row += kPage) __builtin_prefetch(row);
    __builtin_prefetch(last);
  }

  static constexpr int kMax = 10;  // kinds of rows
  struct Rows {
    const char* next;
    int64_t stride, bytes;
  };

  template <int for_writing>
  static HYENAREC_INLINE void fetch_next(Rows& rows) {
    for (int64_t byte = 0; byte < rows.bytes; byte += kLine)
      __builtin_prefetch(rows.next + byte, for_writing);
    rows.next += rows.stride;
  }

  Rows reads_[kMax] = {}, writes_[kMax] = {};
  int num_reads_ = 0, num_writes_ = 0;
  int64_t left_;
  const int64_t rows_per_call_;
};

}  // namespace hyenarec::scan
