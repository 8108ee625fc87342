// Where sequences and their events lie in memory, padded [B, L, D] or packed [total, D]. No torch here.
#pragma once

#include <algorithm>
#include <cstdint>

namespace hyenarec {

// The sequences among the rows (events) of an activation.
struct Sequences {
  const int64_t* offsets;  // nullptr: padded, `length` rows each
  int64_t count;
  int64_t length;
  int64_t rows;

  int64_t start(int64_t sequence) const { return offsets ? offsets[sequence] : sequence * length; }
  int64_t size(int64_t sequence) const {
    return offsets ? offsets[sequence + 1] - offsets[sequence] : length;
  }
  // The sequence that a row belongs to.
  int64_t holding(int64_t row) const {
    return offsets ? std::upper_bound(offsets, offsets + count + 1, row) - offsets - 1 : row / length;
  }
  // Events of the longest sequence.
  int64_t longest() const {
    int64_t most = offsets || count == 0 ? 0 : length;
    for (int64_t s = 0; offsets && s < count; ++s) most = std::max(most, size(s));
    return most;
  }
};

// An activation's rows of neighbouring channels. Without data it is absent: a gate of ones, a result that
// isn't wanted.
template <typename scalar_t>
struct Rows {
  scalar_t* data = nullptr;
  int64_t sequence_stride = 0;  // padded only
  int64_t row_stride = 0;

  scalar_t* row(int64_t t) const { return data + t * row_stride; }
  // Event t of a sequence.
  scalar_t* row(const Sequences& sequences, int64_t sequence, int64_t t) const {
    const int64_t first =
        sequences.offsets ? sequences.offsets[sequence] * row_stride : sequence * sequence_stride;
    return data + first + t * row_stride;
  }
  // One sequence, of which row(t) is the event t; the same of a sequence of `size` events, backwards.
  Rows of(const Sequences& sequences, int64_t sequence) const {
    return {row(sequences, sequence, 0), 0, row_stride};
  }
  Rows backwards(int64_t size) const { return {row(size - 1), 0, -row_stride}; }
  // Without the channels before d.
  Rows from_channel(int64_t d) const { return {data ? data + d : nullptr, sequence_stride, row_stride}; }
};

}  // namespace hyenarec
