// hyena_mixer on the CPU: the scan with the short convolution and the gates at its ends. A chunk's queries,
// keys and values are computed from x where they are needed and never stored. No torch here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "../common/cpu/rows.h"
#include "../legendre_scan/cpu/result_writer.h"
#include "../legendre_scan/cpu/scan.h"
#include "../short_conv/max_width.h"

namespace hyenarec {

constexpr int64_t kQuery = 0, kKey = 1, kValue = 2, kParts = 3;

// One call's activations and taps; results without data are not wanted.
template <typename scalar_t, typename compute_t>
struct HyenaMixerRows {
  Sequences sequences;
  int64_t channels;         // D
  int64_t width;            // taps of the short convolution
  const compute_t* taps;    // [W, 3D]
  const compute_t* biases;  // [3D]
  Rows<const scalar_t> x, grad;
  Rows<scalar_t> out, x_grad;
  bool past_cache;  // go_past_cache's answer for the results
  // Rows of sums a task leaves for the short convolution's gradients: for each part W taps, then the bias.
  int64_t sum_rows() const { return kParts * (width + 1); }
};

// The short convolution's parameters for a vector of channels, and one chunk's partial sums of their
// gradients: for each part the taps, then the bias.
template <typename V>
struct ShortFilter {
  V taps[kParts][kShortConvMaxWidth], biases[kParts], partial_sums[kParts][kShortConvMaxWidth + 1];
};

// The ScanIO of a task.
template <typename V, typename scalar_t>
class HyenaMixerIO {
  using compute_t = simd::LaneOf<V>;
  using Tile = scan::Tile<V>;
  static constexpr int64_t kHistory = kShortConvMaxWidth;  // rows kept before a chunk's own

 public:
  // `sums`, of HyenaMixerRows::sum_rows() rows, take the gradients; nullptr in a forward pass.
  HYENAREC_INLINE HyenaMixerIO(
      const HyenaMixerRows<scalar_t, compute_t>& mixer, int64_t chunk, const scan::Task& task,
      scan::Sums* sums)
      : mixer_(mixer),
        task_(task),
        writer_(mixer.past_cache, task.vectors),
        sums_(sums),
        reach_(mixer.width - 1) {
    scan::for_each_vector<V>(task, [&](int64_t v, int64_t channels) HYENAREC_INLINE_LAMBDA {
      for (int64_t part = 0; part < kParts; ++part) {
        const int64_t column = part * mixer.channels + scan::first_channel<V>(task, v);
        for (int64_t w = 0; w < mixer.width; ++w)
          filters_[v].taps[part][w] =
              simd::load_first<V>(mixer.taps + w * kParts * mixer.channels + column, channels);
        filters_[v].biases[part] = simd::load_first<V>(mixer.biases + column, channels);
        for (V& sum : filters_[v].partial_sums[part]) sum = V{};
      }
    });
    const int64_t pitch = kHistory + chunk + scan::kBlock;
    const int64_t carried = sums ? kParts * task.group.longer_than(chunk) * task.vectors * kHistory : 0;
    const int64_t tiles = sums ? (2 * kParts + 2) * scan::kMaxVectors : 2 * scan::kMaxVectors + kParts;
    const int64_t room = tiles * pitch + carried;
    V* next = memory_.get<V>(room);
    for (int64_t i = 0; i < room; ++i) next[i] = V{};
    const auto take = [&](int64_t vectors) {
      const Tile rows{next + kHistory, vectors > 1 ? pitch : 0};
      next += vectors * pitch;
      return rows;
    };
    for (const int64_t part : {kKey, kValue}) events_[part] = take(scan::kMaxVectors);
    // A forward pass is done with a vector's filtered events, and with keys and values, before it needs room
    // for others: they share it, to stay in the cache.
    events_[kQuery] = sums ? take(scan::kMaxVectors) : events_[kKey];
    for (Tile& filtered : filtered_) filtered = take(sums ? scan::kMaxVectors : 1);
    if (!sums) return;
    grad_ = take(scan::kMaxVectors);
    gradient_ = take(scan::kMaxVectors);
    carries_ = next;
  }

  // z = k v
  HYENAREC_INLINE void load_input(int64_t s, int64_t begin, int64_t rows, const Tile& z) {
    load_events(kKey, s, begin, rows);
    load_events(kValue, s, begin, rows);
    for (int64_t v = 0; v < task_.vectors; ++v) {
      const V* const keys = filter(kKey, v, rows);
      const V* const values = filter(kValue, v, rows);
      for (int64_t t = 0; t < rows; ++t) z.of(v)[t] = keys[t] * values[t];
    }
  }
  // out = q y
  HYENAREC_INLINE void store_output(int64_t s, int64_t begin, int64_t rows, const Tile& y) {
    load_events(kQuery, s, begin, rows);
    for (int64_t v = 0; v < task_.vectors; ++v) {
      const V* const queries = filter(kQuery, v, rows);
      for (int64_t t = 0; t < rows; ++t) y.of(v)[t] *= queries[t];
    }
    store_rows(y, row(mixer_.out, s, begin, 0), mixer_.out.row_stride, rows);
  }
  // dy = q dout
  HYENAREC_INLINE void load_output_grad(int64_t s, int64_t begin, int64_t rows, const Tile& dy) {
    load_events(kQuery, s, begin, rows);
    load_rows(row(mixer_.grad, s, begin, 0), mixer_.grad.row_stride, 0, rows, grad_);
    for (int64_t v = 0; v < task_.vectors; ++v) {
      const V* const queries = filter(kQuery, v, rows);
      for (int64_t t = 0; t < rows; ++t) dy.of(v)[t] = grad_.of(v)[t] * queries[t];
    }
  }
  // dq = y dout
  HYENAREC_INLINE void store_gate_grad(int64_t s, int64_t begin, int64_t rows, const Tile& y) {
    for (int64_t v = 0; v < task_.vectors; ++v) {
      V* const dq = gradient_.of(v);
      for (int64_t t = 0; t < rows; ++t) dq[t] = grad_.of(v)[t] * y.of(v)[t];
      take_part_grad(kQuery, s, v, begin, rows, dq);
    }
    store_x_grad(kQuery, s, begin, rows);
  }
  // dk = v dz, dv = k dz
  HYENAREC_INLINE void store_input_grad(int64_t s, int64_t begin, int64_t rows, const Tile& dz) {
    for (int64_t v = 0; v < task_.vectors; ++v) {
      // Both factors are needed before filter_transposed overwrites the first.
      V* const dk = gradient_.of(v);
      V* const dv = grad_.of(v);
      for (int64_t t = 0; t < rows; ++t) {
        dk[t] = dz.of(v)[t] * filtered_[kValue].of(v)[t];
        dv[t] = dz.of(v)[t] * filtered_[kKey].of(v)[t];
      }
      take_part_grad(kKey, s, v, begin, rows, dk);
      take_part_grad(kValue, s, v, begin, rows, dv);
    }
    store_x_grad(kKey, s, begin, rows);
    store_x_grad(kValue, s, begin, rows);
  }
  // Adds the chunk's partial sums to the task's.
  HYENAREC_INLINE void end_chunk() {
    const int64_t rows = mixer_.width + 1;
    for (int64_t v = 0; v < task_.vectors; ++v) {
      for (int64_t part = 0; part < kParts; ++part)
        scan::flush(
            filters_[v].partial_sums[part], rows, sums_->of(task_, v) + part * rows * simd::kLanes<V>);
    }
  }
  HYENAREC_INLINE void watch_inputs(int64_t s, int64_t begin, scan::LookAhead& ahead) const {
    watch_events({kKey, kValue}, s, begin, ahead);
  }
  HYENAREC_INLINE void watch_forward(int64_t s, int64_t begin, scan::LookAhead& ahead) const {
    watch_events({kKey, kValue, kQuery}, s, begin, ahead);
    writer_.watch(row(mixer_.out, s, begin, 0), mixer_.out.row_stride * kBytes, row_bytes(), ahead);
  }
  HYENAREC_INLINE void watch_backward(int64_t s, int64_t begin, scan::LookAhead& ahead) const {
    watch_events({kKey, kValue, kQuery}, s, begin, ahead);
    ahead.read(row(mixer_.grad, s, begin, 0), mixer_.grad.row_stride * kBytes, row_bytes());
    for (int64_t part = 0; mixer_.x_grad.data && part < kParts; ++part)
      writer_.watch(
          row(mixer_.x_grad, s, begin, part), mixer_.x_grad.row_stride * kBytes, row_bytes(), ahead);
  }

 private:
  static constexpr int64_t kBytes = sizeof(scalar_t);

  HYENAREC_INLINE int64_t row_bytes() const { return task_.vectors * simd::kLanes<V> * kBytes; }
  HYENAREC_INLINE void watch_events(
      std::initializer_list<int64_t> parts, int64_t s, int64_t begin, scan::LookAhead& ahead) const {
    for (const int64_t part : parts)
      ahead.read(row(mixer_.x, s, begin, part), mixer_.x.row_stride * kBytes, row_bytes());
  }

  template <typename pointer_t>
  HYENAREC_INLINE pointer_t* row(const Rows<pointer_t>& a, int64_t s, int64_t t, int64_t part) const {
    const int64_t column = part * mixer_.channels + scan::first_channel<V>(task_, 0);
    return a.row(mixer_.sequences, task_.group.sequences[s], t) + column;
  }
  HYENAREC_INLINE V* carry_of(int64_t part, int64_t s, int64_t v) const {
    return carries_ + ((s * task_.vectors + v) * kParts + part) * kHistory;
  }
  HYENAREC_INLINE void load_rows(
      const scalar_t* from, int64_t stride, int64_t first, int64_t rows, const Tile& to) const {
    for (int64_t t = first; t < rows; ++t) {
      scan::for_each_vector<V>(task_, [&](int64_t v, int64_t channels) HYENAREC_INLINE_LAMBDA {
        to.of(v)[t] = simd::load_first<V>(from + t * stride + v * simd::kLanes<V>, channels);
      });
    }
  }

  HYENAREC_INLINE void store_rows(const Tile& from, scalar_t* to, int64_t stride, int64_t rows) const {
    for (int64_t t = 0; t < rows; ++t, to += stride) {
      scan::for_each_vector<V>(task_, [&](int64_t v, int64_t channels) HYENAREC_INLINE_LAMBDA {
        writer_.write(from.of(v)[t], to + v * simd::kLanes<V>, channels);
      });
    }
  }

  // A part's rows of x, behind those that its first taps reach; zero where there are none.
  HYENAREC_INLINE void load_events(int64_t part, int64_t s, int64_t begin, int64_t rows) const {
    const Tile& events = events_[part];
    const int64_t earlier = std::min(reach_, begin);
    load_rows(row(mixer_.x, s, begin, part), mixer_.x.row_stride, -earlier, rows, events);
    for (int64_t v = 0; v < task_.vectors; ++v) {
      for (int64_t t = -reach_; t < -earlier; ++t) events.of(v)[t] = V{};
      scan::clear_rest(events.of(v), rows, scan::padded(rows));
    }
  }
  // filtered[t] = bias + sum_w taps[w] x[t - w]
  HYENAREC_INLINE const V* filter(int64_t part, int64_t v, int64_t rows) const {
    const V* const events = events_[part].of(v);
    V* const to = filtered_[part].of(v);
    for (int64_t first = 0; first < rows; first += scan::kBlock) {
      V sums[scan::kBlock];
      for (V& sum : sums) sum = filters_[v].biases[part];
      for (int64_t w = 0; w < mixer_.width; ++w) {
        const V tap = filters_[v].taps[part][w];
        for (int64_t i = 0; i < scan::kBlock; ++i) sums[i] += tap * events[first + i - w];
      }
      for (int64_t i = 0; i < scan::kBlock; ++i) to[first + i] = sums[i];
    }
    return to;
  }

  // The taps' and the bias's gradients; d is zero from `rows` to the end of its block.
  HYENAREC_INLINE void add_tap_products(int64_t part, int64_t v, const V* d, int64_t rows) {
    const V* const events = events_[part].of(v);
    V* const partial_sums = filters_[v].partial_sums[part];
    const int64_t end = scan::padded(rows);
    for (int64_t w = 0; w < mixer_.width; ++w) {
      V sums[4] = {};
      for (int64_t t = 0; t < end; t += 4) {
        for (int64_t i = 0; i < 4; ++i) sums[i] += d[t + i] * events[t + i - w];
      }
      partial_sums[w] += (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
    V sums[4] = {};
    for (int64_t t = 0; t < end; t += 4) {
      for (int64_t i = 0; i < 4; ++i) sums[i] += d[t + i];
    }
    partial_sums[mixer_.width] += (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  // The gradient of x at as many rows, sum_w taps[w] d[t + w], in place of the part's filtered events.
  HYENAREC_INLINE void filter_transposed(int64_t part, int64_t v, const V* d, int64_t rows) const {
    V* const to = filtered_[part].of(v);
    for (int64_t first = 0; first < rows; first += scan::kBlock) {
      V sums[scan::kBlock] = {};
      for (int64_t w = 0; w < mixer_.width; ++w) {
        const V tap = filters_[v].taps[part][w];
        for (int64_t i = 0; i < scan::kBlock; ++i) sums[i] += tap * d[first + i + w];
      }
      for (int64_t i = 0; i < scan::kBlock; ++i) to[first + i] = sums[i];
    }
  }
  HYENAREC_INLINE void store_x_grad(int64_t part, int64_t s, int64_t begin, int64_t rows) const {
    if (!mixer_.x_grad.data) return;
    store_rows(filtered_[part], row(mixer_.x_grad, s, begin, part), mixer_.x_grad.row_stride, rows);
  }

  // From the gradient d of a part's filtered events.
  HYENAREC_INLINE void take_part_grad(int64_t part, int64_t s, int64_t v, int64_t begin, int64_t rows, V* d) {
    scan::clear_rest(d, rows, scan::padded(rows) + scan::kBlock);
    add_tap_products(part, v, d, rows);
    const bool ends = begin + rows == task_.group.lengths[s];
    if (!ends) std::copy_n(carry_of(part, s, v), reach_, d + rows);  // of the chunk behind this one
    if (begin > 0) std::copy_n(d, reach_, carry_of(part, s, v));
    filter_transposed(part, v, d, rows);
  }

  const HyenaMixerRows<scalar_t, compute_t>& mixer_;
  const scan::Task& task_;
  const scan::ResultWriter<V, scalar_t> writer_;
  scan::Sums* const sums_;
  const int64_t reach_;  // events that the short convolution reaches back
  ShortFilter<V> filters_[scan::kMaxVectors];
  scan::Scratch memory_;
  // Tiles of one chunk, each row of which lies behind kHistory others and before scan::kBlock more.
  Tile events_[kParts], filtered_[kParts], grad_{}, gradient_{};
  V* carries_ = nullptr;  // [sequence][vector][part]: gradients at a chunk's edge that the next chunk needs
};

// The short convolution's gradients, [3D, W] and [3D], from the sums over all tasks; nullptr: not wanted.
template <typename scalar_t, typename compute_t>
void store_filter_grads(
    const scan::ScanCall<compute_t>& call, const scan::Sums& sums,
    const HyenaMixerRows<scalar_t, compute_t>& mixer, compute_t* weight_grad, compute_t* bias_grad) {
  const int64_t width = mixer.width;
  for (int64_t d = 0; d < mixer.channels; ++d) {
    const auto total = call.total(sums, d);
    for (int64_t part = 0; part < kParts; ++part) {
      const double* of_part = total.data() + part * (width + 1);
      const int64_t column = part * mixer.channels + d;
      if (weight_grad) std::copy_n(of_part, width, weight_grad + column * width);
      if (bias_grad) bias_grad[column] = static_cast<compute_t>(of_part[width]);
    }
  }
}

}  // namespace hyenarec
