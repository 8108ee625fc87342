// legendre_conv on the CPU: the scan with the gates at its ends. No torch here.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "../common/cpu/rows.h"
#include "../legendre_scan/cpu/result_writer.h"
#include "../legendre_scan/cpu/scan.h"

namespace hyenarec {

// The activations of one call; gates without data are ones, results without data are not wanted.
template <typename scalar_t>
struct LegendreConvRows {
  Sequences sequences;
  Rows<const scalar_t> u, pre_gate, post_gate, grad;
  Rows<scalar_t> out, u_grad, pre_gate_grad, post_gate_grad;
  bool past_cache;  // go_past_cache's answer for the results
};

// The ScanIO of a task.
template <typename V, typename scalar_t>
class LegendreConvIO {
  using Tile = scan::Tile<V>;

 public:
  HYENAREC_INLINE LegendreConvIO(const LegendreConvRows<scalar_t>& all, const scan::Task& task)
      : all_(all), task_(task), writer_(all.past_cache, task.vectors) {}

  HYENAREC_INLINE void load_input(int64_t s, int64_t begin, int64_t rows, const Tile& z) {
    load_gated(all_.u, all_.pre_gate, s, begin, rows, z);
  }
  HYENAREC_INLINE void store_output(int64_t s, int64_t begin, int64_t rows, const Tile& y) {
    store_gated(y, all_.post_gate, all_.out, s, begin, rows);
  }
  HYENAREC_INLINE void load_output_grad(int64_t s, int64_t begin, int64_t rows, const Tile& dy) {
    load_gated(all_.grad, all_.post_gate, s, begin, rows, dy);
  }
  HYENAREC_INLINE void store_gate_grad(int64_t s, int64_t begin, int64_t rows, const Tile& y) {
    store_gated(y, all_.grad, all_.post_gate_grad, s, begin, rows);
  }
  HYENAREC_INLINE void store_input_grad(int64_t s, int64_t begin, int64_t rows, const Tile& dz) {
    if (all_.u_grad.data) store_gated(dz, all_.pre_gate, all_.u_grad, s, begin, rows);
    if (all_.pre_gate_grad.data) store_gated(dz, all_.u, all_.pre_gate_grad, s, begin, rows);
  }
  HYENAREC_INLINE void end_chunk() {}
  HYENAREC_INLINE void watch_inputs(int64_t s, int64_t begin, scan::LookAhead& ahead) const {
    watch_read({&all_.u, &all_.pre_gate}, s, begin, ahead);
  }
  HYENAREC_INLINE void watch_forward(int64_t s, int64_t begin, scan::LookAhead& ahead) const {
    watch_read({&all_.u, &all_.pre_gate, &all_.post_gate}, s, begin, ahead);
    watch_written({&all_.out}, s, begin, ahead);
  }
  HYENAREC_INLINE void watch_backward(int64_t s, int64_t begin, scan::LookAhead& ahead) const {
    watch_read({&all_.u, &all_.pre_gate, &all_.post_gate, &all_.grad}, s, begin, ahead);
    watch_written({&all_.u_grad, &all_.pre_gate_grad, &all_.post_gate_grad}, s, begin, ahead);
  }

 private:
  template <typename pointer_t>
  HYENAREC_INLINE pointer_t* row(const Rows<pointer_t>& rows, int64_t s, int64_t t) const {
    return rows.row(all_.sequences, task_.group.sequences[s], t) + scan::first_channel<V>(task_, 0);
  }

  HYENAREC_INLINE void watch_read(
      std::initializer_list<const Rows<const scalar_t>*> activations, int64_t s, int64_t begin,
      scan::LookAhead& ahead) const {
    for (const auto* a : activations) {
      if (a->data) ahead.read(row(*a, s, begin), a->row_stride * sizeof(scalar_t), row_bytes());
    }
  }
  HYENAREC_INLINE void watch_written(
      std::initializer_list<const Rows<scalar_t>*> activations, int64_t s, int64_t begin,
      scan::LookAhead& ahead) const {
    for (const auto* a : activations) {
      if (a->data) writer_.watch(row(*a, s, begin), a->row_stride * sizeof(scalar_t), row_bytes(), ahead);
    }
  }
  HYENAREC_INLINE int64_t row_bytes() const {
    return task_.vectors * simd::kLanes<V> * static_cast<int64_t>(sizeof(scalar_t));
  }

  // values = a gate
  HYENAREC_INLINE void load_gated(
      const Rows<const scalar_t>& a, const Rows<const scalar_t>& gate, int64_t s, int64_t begin, int64_t rows,
      const Tile& values) const {
    const scalar_t* from = row(a, s, begin);
    const scalar_t* factor = gate.data ? row(gate, s, begin) : nullptr;
    for (int64_t t = 0; t < rows; ++t, from += a.row_stride) {
      scan::for_each_vector<V>(task_, [&](int64_t v, int64_t channels) HYENAREC_INLINE_LAMBDA {
        const int64_t first = v * simd::kLanes<V>;
        V value = simd::load_first<V>(from + first, channels);
        if (factor) value *= simd::load_first<V>(factor + t * gate.row_stride + first, channels);
        values.of(v)[t] = value;
      });
    }
  }
  // to = values gate
  HYENAREC_INLINE void store_gated(
      const Tile& values, const Rows<const scalar_t>& gate, const Rows<scalar_t>& to, int64_t s,
      int64_t begin, int64_t rows) const {
    scalar_t* out = row(to, s, begin);
    const scalar_t* factor = gate.data ? row(gate, s, begin) : nullptr;
    for (int64_t t = 0; t < rows; ++t, out += to.row_stride) {
      scan::for_each_vector<V>(task_, [&](int64_t v, int64_t channels) HYENAREC_INLINE_LAMBDA {
        const int64_t first = v * simd::kLanes<V>;
        V value = values.of(v)[t];
        if (factor) value *= simd::load_first<V>(factor + t * gate.row_stride + first, channels);
        writer_.write(value, out + first, channels);
      });
    }
  }

  const LegendreConvRows<scalar_t>& all_;
  const scan::Task& task_;
  const scan::ResultWriter<V, scalar_t> writer_;
};

}  // namespace hyenarec
