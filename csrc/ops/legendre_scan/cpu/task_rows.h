// A task's rows of activations: row by row, each row's neighbouring vectors of channels at once.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../../common/cpu/rows.h"
#include "look_ahead.h"
#include "tasks.h"

namespace hyenarec::scan {

// A task's view of activations. Event t of a chunk is event `begin` + t of a sequence, which is given by its
// index `s` in the task. It lives as long as the task.
template <typename V, typename scalar_t>
class TaskRows {
 public:
  // `past_cache` is go_past_cache's answer.
  HYENAREC_INLINE TaskRows(const Sequences& sequences, const Task& task, bool past_cache)
      : sequences_(sequences),
        task_(task),
        row_bytes_(task.vectors * simd::kLanes<V> * static_cast<int64_t>(sizeof(scalar_t))),
        past_cache_(past_cache && row_bytes_ % kLine == 0) {}
  TaskRows(const TaskRows&) = delete;
  HYENAREC_INLINE ~TaskRows() {
    if (past_cache_) simd::end_stores_past_cache();
  }

  // values[t] = activation gate, for `first` <= t < `last`. A gate without data is one.
  HYENAREC_INLINE void load(
      const Rows<const scalar_t>& activation, const Rows<const scalar_t>& gate, int64_t s, int64_t begin,
      int64_t first, int64_t last, const Tile<V>& values) const {
    const scalar_t* const from = row(activation, s, begin);
    const scalar_t* const factors = gate.data ? row(gate, s, begin) : nullptr;
    for (int64_t t = first; t < last; ++t) {
      for_each_vector<V>(task_, [&](int64_t v, int64_t channels) HYENAREC_INLINE_LAMBDA {
        const int64_t d = v * simd::kLanes<V>;
        V value = simd::load_first<V>(from + t * activation.row_stride + d, channels);
        if (factors) value *= simd::load_first<V>(factors + t * gate.row_stride + d, channels);
        values.of(v)[t] = value;
      });
    }
  }
  // result = values[t] gate, for 0 <= t < `last`. A result without data is not wanted.
  HYENAREC_INLINE void store(
      const Tile<V>& values, const Rows<const scalar_t>& gate, const Rows<scalar_t>& result, int64_t s,
      int64_t begin, int64_t last) const {
    if (!result.data) return;
    scalar_t* const to = row(result, s, begin);
    const scalar_t* const factors = gate.data ? row(gate, s, begin) : nullptr;
    for (int64_t t = 0; t < last; ++t) {
      for_each_vector<V>(task_, [&](int64_t v, int64_t channels) HYENAREC_INLINE_LAMBDA {
        const int64_t d = v * simd::kLanes<V>;
        V value = values.of(v)[t];
        if (factors) value *= simd::load_first<V>(factors + t * gate.row_stride + d, channels);
        if (past_cache_)
          simd::store_past_cache(value, to + t * result.row_stride + d);
        else
          simd::store_first(value, to + t * result.row_stride + d, channels);
      });
    }
  }
  // Tells a LookAhead about the rows of a chunk that will be read or, of results, written.
  template <typename... value_t>
  HYENAREC_INLINE void watch(
      int64_t s, int64_t begin, LookAhead& ahead, const Rows<value_t>&... activations) const {
    (watch_rows(activations, s, begin, ahead), ...);
  }

 private:
  template <typename value_t>
  HYENAREC_INLINE value_t* row(const Rows<value_t>& activation, int64_t s, int64_t t) const {
    return activation.row(sequences_, task_.group.sequences[s], t) + first_channel<V>(task_, 0);
  }
  template <typename value_t>
  HYENAREC_INLINE void watch_rows(
      const Rows<value_t>& activation, int64_t s, int64_t begin, LookAhead& ahead) const {
    if (!activation.data) return;
    const int64_t stride = activation.row_stride * sizeof(scalar_t);
    if constexpr (std::is_const_v<value_t>)
      ahead.read(row(activation, s, begin), stride, row_bytes_);
    else if (past_cache_)
      ahead.written_past_cache(row(activation, s, begin), stride);
    else
      ahead.written(row(activation, s, begin), stride, row_bytes_);
  }

  const Sequences& sequences_;
  const Task& task_;
  const int64_t row_bytes_;  // of what it reads or writes of a row
  const bool past_cache_;
};

}  // namespace hyenarec::scan
