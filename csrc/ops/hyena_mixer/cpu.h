// hyena_mixer on the CPU: the scan with the short convolution and the gates at its ends. A chunk's queries,
// keys and values are computed from x where they are needed and never stored. No torch here.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/cpu/rows.h"
#include "../legendre_scan/cpu/scan.h"
#include "../legendre_scan/cpu/task_rows.h"
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
        rows_(mixer.sequences, task, mixer.past_cache),
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
    const auto take = [&](int64_t vectors) {
      return Tile{memory_.zeros<V>(vectors * pitch) + kHistory, vectors > 1 ? pitch : 0};
    };
    for (const int64_t part : {kKey, kValue}) events_[part] = take(scan::kMaxVectors);
    // A forward pass is done with a vector's filtered events, and with keys and values, before it needs room
    // for others: they share it, to stay in the cache.
    events_[kQuery] = sums ? take(scan::kMaxVectors) : events_[kKey];
    for (Tile& filtered : filtered_) filtered = take(sums ? scan::kMaxVectors : 1);
    if (!sums) return;
    grad_ = take(scan::kMaxVectors);
    gradient_ = take(scan::kMaxVectors);
    carries_ = memory_.zeros<V>(kParts * task.group.longer_than(chunk) * task.vectors * kHistory);
  }

  // z = k v
  HYENAREC_INLINE void load_input(int64_t s, int64_t begin, int64_t rows, const Tile& z) {
    load_events(kKey, s, begin, rows);
    load_events(kValue, s, begin, rows);
    for (int64_t v = 0; v < task_.vectors; ++v)
      multiply(filter(kKey, v, rows), filter(kValue, v, rows), rows, z.of(v));
  }
  // out = q y
  HYENAREC_INLINE void store_output(int64_t s, int64_t begin, int64_t rows, const Tile& y) {
    load_events(kQuery, s, begin, rows);
    for (int64_t v = 0; v < task_.vectors; ++v) multiply(y.of(v), filter(kQuery, v, rows), rows, y.of(v));
    rows_.store(y, {}, mixer_.out, s, begin, rows);
  }
  // dy = q dout
  HYENAREC_INLINE void load_output_grad(int64_t s, int64_t begin, int64_t rows, const Tile& dy) {
    load_events(kQuery, s, begin, rows);
    rows_.load(mixer_.grad, {}, s, begin, 0, rows, grad_);
    for (int64_t v = 0; v < task_.vectors; ++v)
      multiply(grad_.of(v), filter(kQuery, v, rows), rows, dy.of(v));
  }
  // dq = y dout
  HYENAREC_INLINE void store_gate_grad(int64_t s, int64_t begin, int64_t rows, const Tile& y) {
    for (int64_t v = 0; v < task_.vectors; ++v) {
      V* const dq = gradient_.of(v);
      multiply(grad_.of(v), y.of(v), rows, dq);
      take_part_grad(kQuery, s, v, begin, rows, dq);
    }
    rows_.store(filtered_[kQuery], {}, part_of(mixer_.x_grad, kQuery), s, begin, rows);
  }
  // dk = v dz, dv = k dz
  HYENAREC_INLINE void store_input_grad(int64_t s, int64_t begin, int64_t rows, const Tile& dz) {
    for (int64_t v = 0; v < task_.vectors; ++v) {
      // Both factors are needed before take_part_grad overwrites the first.
      V* const dk = gradient_.of(v);
      V* const dv = grad_.of(v);
      multiply(dz.of(v), filtered_[kValue].of(v), rows, dk);
      multiply(dz.of(v), filtered_[kKey].of(v), rows, dv);
      take_part_grad(kKey, s, v, begin, rows, dk);
      take_part_grad(kValue, s, v, begin, rows, dv);
    }
    for (const int64_t part : {kKey, kValue})
      rows_.store(filtered_[part], {}, part_of(mixer_.x_grad, part), s, begin, rows);
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
    rows_.watch(s, begin, ahead, part_of(mixer_.x, kKey), part_of(mixer_.x, kValue));
  }
  HYENAREC_INLINE void watch_forward(int64_t s, int64_t begin, scan::LookAhead& ahead) const {
    watch_inputs(s, begin, ahead);
    rows_.watch(s, begin, ahead, part_of(mixer_.x, kQuery), mixer_.out);
  }
  HYENAREC_INLINE void watch_backward(int64_t s, int64_t begin, scan::LookAhead& ahead) const {
    watch_inputs(s, begin, ahead);
    rows_.watch(s, begin, ahead, part_of(mixer_.x, kQuery), mixer_.grad);
    for (int64_t part = 0; part < kParts; ++part) rows_.watch(s, begin, ahead, part_of(mixer_.x_grad, part));
  }

 private:
  template <typename value_t>
  HYENAREC_INLINE Rows<value_t> part_of(const Rows<value_t>& x, int64_t part) const {
    return x.from_channel(part * mixer_.channels);
  }
  static HYENAREC_INLINE void multiply(const V* a, const V* b, int64_t rows, V* product) {
    for (int64_t t = 0; t < rows; ++t) product[t] = a[t] * b[t];
  }
  HYENAREC_INLINE V* carry_of(int64_t part, int64_t s, int64_t v) const {
    return carries_ + ((s * task_.vectors + v) * kParts + part) * kHistory;
  }
  // A part's rows of x, behind those that its first taps reach; zero where there are none.
  HYENAREC_INLINE void load_events(int64_t part, int64_t s, int64_t begin, int64_t rows) const {
    const Tile& events = events_[part];
    const int64_t earlier = std::min(reach_, begin);
    rows_.load(part_of(mixer_.x, part), {}, s, begin, -earlier, rows, events);
    for (int64_t v = 0; v < task_.vectors; ++v) {
      scan::clear(events.of(v), -reach_, -earlier);
      scan::clear(events.of(v), rows, scan::padded(rows));
    }
  }
  // filtered[t] = bias + sum_w taps[w] x[t - w]
  HYENAREC_INLINE const V* filter(int64_t part, int64_t v, int64_t rows) const {
    return add_taps<-1>(part, v, filters_[v].biases[part], events_[part].of(v), rows);
  }
  // filtered[t] = start + sum_w taps[w] from[t + direction w]
  template <int direction>
  HYENAREC_INLINE const V* add_taps(
      int64_t part, int64_t v, const V& start, const V* from, int64_t rows) const {
    V* const to = filtered_[part].of(v);
    for (int64_t first = 0; first < rows; first += scan::kBlock) {
      V sums[scan::kBlock];
      for (V& sum : sums) sum = start;
      for (int64_t w = 0; w < mixer_.width; ++w) {
        const V tap = filters_[v].taps[part][w];
        for (int64_t i = 0; i < scan::kBlock; ++i) sums[i] += tap * from[first + i + direction * w];
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
    for (int64_t w = 0; w < mixer_.width; ++w)
      partial_sums[w] +=
          scan::sum_over<V>(end, [&](int64_t t) HYENAREC_INLINE_LAMBDA { return d[t] * events[t - w]; });
    partial_sums[mixer_.width] +=
        scan::sum_over<V>(end, [&](int64_t t) HYENAREC_INLINE_LAMBDA { return d[t]; });
  }

  // From the gradient d of a part's filtered events.
  HYENAREC_INLINE void take_part_grad(int64_t part, int64_t s, int64_t v, int64_t begin, int64_t rows, V* d) {
    scan::clear(d, rows, scan::padded(rows) + scan::kBlock);
    add_tap_products(part, v, d, rows);
    const bool ends = begin + rows == task_.group.lengths[s];
    if (!ends) std::copy_n(carry_of(part, s, v), reach_, d + rows);  // of the chunk behind this one
    if (begin > 0) std::copy_n(d, reach_, carry_of(part, s, v));
    // The gradient of x, in place of the part's filtered events.
    add_taps<1>(part, v, V{}, d, rows);
  }

  const HyenaMixerRows<scalar_t, compute_t>& mixer_;
  const scan::Task& task_;
  const scan::TaskRows<V, scalar_t> rows_;
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
