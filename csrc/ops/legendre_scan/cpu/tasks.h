// How a scan's work is cut into tasks: a few sequences by up to four vectors of channels. All sequences of a
// task are walked in step, chunk by chunk: what depends on chunk and channel only is then at hand for all of
// them, and neighbouring vectors find each other's rows in the cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "../../common/cpu/rows.h"
#include "../../common/cpu/simd.h"
#include "chunk.h"
#include "state.h"

namespace hyenarec::scan {

constexpr int64_t kMaxVectors = 4;  // of a task: four cache lines side by side
// A task's size. Its sequences share what they are multiplied with, and its events must outweigh what the
// task itself costs. Many sequences make up for few events and the other way round, down to a minimum of
// each. But the threads of a small machine need a few tasks each, and kMaxTaskEvents are enough for any task.
constexpr int64_t kMinTaskSequences = 4, kMinTaskEvents = 2048, kMaxTaskEvents = 8192, kTasks = 8;
constexpr int64_t kSequencesTimesEvents = 1 << 16;

// Arrays of vectors, aligned for them, one after another in few blocks of memory. After restart() the same
// memory is given again.
class Scratch {
 public:
  void restart() { block_ = used_ = 0; }
  // Not cleared.
  template <typename V>
  V* get(int64_t count) {
    const size_t lines = count * sizeof(V) / sizeof(Line) + 1;
    for (; block_ < blocks_.size() && used_ + lines > blocks_[block_].size; ++block_) used_ = 0;
    if (block_ == blocks_.size()) {
      const size_t size = std::max(lines, kBlockLines);
      blocks_.push_back({std::unique_ptr<Line[]>(new Line[size]), size});
    }
    Line* const array = blocks_[block_].lines.get() + used_;
    used_ += lines;
    return reinterpret_cast<V*>(array);
  }
  template <typename V>
  V* zeros(int64_t count) {
    V* const array = get<V>(count);
    std::fill_n(array, count, V{});
    return array;
  }

 private:
  struct alignas(64) Line {
    unsigned char bytes[64];
  };
  struct Block {
    std::unique_ptr<Line[]> lines;
    size_t size;
  };
  static constexpr size_t kBlockLines = 1024;  // enough for a small call
  std::vector<Block> blocks_;
  size_t block_ = 0, used_ = 0;
};

// Sequences that a task walks in step, longest first.
struct Group {
  std::vector<int64_t> sequences;
  std::vector<int64_t> lengths;
  int64_t longest() const { return lengths.front(); }
  // How many sequences go on after event `time`; they are the first ones.
  int64_t longer_than(int64_t time) const {
    return std::partition_point(
               lengths.begin(), lengths.end(), [&](int64_t length) { return length > time; }) -
           lengths.begin();
  }
};

// Events that make a task of this many sequences large enough in a call with `rows` events.
inline int64_t enough_events(int64_t sequences, int64_t rows) {
  const int64_t most = std::clamp(rows / kTasks, kMinTaskEvents, kMaxTaskEvents);
  return std::clamp(kSequencesTimesEvents / sequences, kMinTaskEvents, most);
}

// All sequences that have events, longest first, in groups. They depend on the lengths only, never on the
// number of threads: neither do sums over them.
inline std::vector<Group> make_groups(const Sequences& sequences) {
  std::vector<int64_t> order(sequences.count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return sequences.size(a) > sequences.size(b);
  });
  std::vector<Group> groups;
  const int64_t least = std::clamp<int64_t>(static_cast<int64_t>(order.size()) / 2, 1, kMinTaskSequences);
  bool is_full = true;
  int64_t members = 0, events = 0;
  for (const int64_t s : order) {
    const int64_t length = sequences.size(s);
    if (length == 0) break;
    if (is_full) {
      groups.emplace_back();
      members = events = 0;
    }
    groups.back().sequences.push_back(s);
    groups.back().lengths.push_back(length);
    ++members;
    events += length;
    is_full = members >= least && events >= enough_events(members, sequences.rows);
  }
  return groups;
}

// A group's sequences by a few neighbouring vectors of channels.
struct Task {
  const Group& group;
  int64_t group_index;
  int64_t first_vector;
  int64_t vectors;
  int64_t last_channels;  // channels of the last vector, the others are full
};

// Calls visit(vector, number of its channels) for the vectors of a task.
template <typename V, typename Visit>
HYENAREC_INLINE void for_each_vector(const Task& task, const Visit& visit) {
  if (task.vectors == kMaxVectors && task.last_channels == simd::kLanes<V>) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kMaxVectors; ++v) visit(v, simd::kLanes<V>);
  } else {
    for (int64_t v = 0; v + 1 < task.vectors; ++v) visit(v, simd::kLanes<V>);
    visit(task.vectors - 1, task.last_channels);
  }
}

template <typename V>
HYENAREC_INLINE int64_t first_channel(const Task& task, int64_t vector) {
  return (task.first_vector + vector) * simd::kLanes<V>;
}

// The states that segments hand on, saved by a forward pass for the backward pass: [rows, N, D], a sequence's
// one after another. value_t is const where they are read.
template <typename value_t>
struct SavedStates {
  value_t* data = nullptr;
  int64_t num_coeffs = 0, channels = 0;
  int64_t rows = 0;
  std::vector<int64_t> first_row;  // of each sequence

  // What segment `index` of a sequence hands on.
  value_t* row(int64_t sequence, int64_t index) const {
    return data + (first_row[sequence] + index) * num_coeffs * channels;
  }
};

// Rows of one chunk for each vector of a task, vector after vector.
template <typename V>
using Tile = StridedRows<V>;

// Buffers for one chunk of one sequence, on the stack: they stay in the cache.
template <typename V>
struct ChunkBuffers {
  Tile<V> z, y, dy, dz;  // z with zeros before it
  V folded[kMaxChunk];

  HYENAREC_INLINE explicit ChunkBuffers(int64_t chunk) {
    const int64_t pitch = chunk + kZerosBefore;
    for (int64_t i = 0; i < kMaxVectors * pitch; ++i) z_rows_[i] = V{};
    z = {z_rows_ + kZerosBefore, pitch};
    y = {y_rows_, chunk};
    dy = {dy_rows_, chunk};
    dz = {dz_rows_, chunk};
  }

 private:
  V z_rows_[kMaxVectors * (kZerosBefore + kMaxChunk)];
  V y_rows_[kMaxVectors * kMaxChunk], dy_rows_[kMaxVectors * kMaxChunk], dz_rows_[kMaxVectors * kMaxChunk];
};

// `pitch` vectors for each sequence and each vector of a task: states, moments, their gradients.
template <typename V>
struct StateRows {
  V* data;
  int64_t vectors;
  int64_t pitch;  // N, or as many as are used

  HYENAREC_INLINE V* of(int64_t s, int64_t v) const { return data + (s * vectors + v) * pitch; }
  HYENAREC_INLINE StridedRows<V> members(int64_t v) const { return {of(0, v), vectors * pitch}; }
  HYENAREC_INLINE int64_t size(int64_t sequences) const { return sequences * vectors * pitch; }
};

// The chunk that a sweep computes after that of sequence `s` at `begin`: the next sequence's, or the first
// sequence's `step` events on. `alive` sequences have a chunk at `begin`. It has no rows where the sweep
// ends.
struct NextChunk {
  int64_t s, begin, rows;
};
HYENAREC_INLINE NextChunk
next_chunk(const Group& group, int64_t s, int64_t begin, int64_t alive, int64_t chunk, int64_t step) {
  if (s + 1 < alive) return {s + 1, begin, std::min(chunk, group.lengths[s + 1] - begin)};
  const int64_t next = begin + step;
  return {0, next, next < 0 ? 0 : std::clamp<int64_t>(group.longest() - next, 0, chunk)};
}

}  // namespace hyenarec::scan
