// legendre_conv on the CPU: the scan with the gates at its ends. No torch here.
#pragma once

#include <cstdint>

#include "../common/cpu/rows.h"
#include "../legendre_scan/cpu/scan.h"
#include "../legendre_scan/cpu/task_rows.h"

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
      : all_(all), rows_(all.sequences, task, all.past_cache) {}

  HYENAREC_INLINE void load_input(int64_t s, int64_t begin, int64_t rows, const Tile& z) {
    rows_.load(all_.u, all_.pre_gate, s, begin, 0, rows, z);
  }
  HYENAREC_INLINE void store_output(int64_t s, int64_t begin, int64_t rows, const Tile& y) {
    rows_.store(y, all_.post_gate, all_.out, s, begin, rows);
  }
  HYENAREC_INLINE void load_output_grad(int64_t s, int64_t begin, int64_t rows, const Tile& dy) {
    rows_.load(all_.grad, all_.post_gate, s, begin, 0, rows, dy);
  }
  HYENAREC_INLINE void store_gate_grad(int64_t s, int64_t begin, int64_t rows, const Tile& y) {
    rows_.store(y, all_.grad, all_.post_gate_grad, s, begin, rows);
  }
  HYENAREC_INLINE void store_input_grad(int64_t s, int64_t begin, int64_t rows, const Tile& dz) {
    rows_.store(dz, all_.pre_gate, all_.u_grad, s, begin, rows);
    rows_.store(dz, all_.u, all_.pre_gate_grad, s, begin, rows);
  }
  HYENAREC_INLINE void end_chunk() {}
  HYENAREC_INLINE void watch_inputs(int64_t s, int64_t begin, scan::LookAhead& ahead) const {
    rows_.watch(s, begin, ahead, all_.u, all_.pre_gate);
  }
  HYENAREC_INLINE void watch_forward(int64_t s, int64_t begin, scan::LookAhead& ahead) const {
    rows_.watch(s, begin, ahead, all_.u, all_.pre_gate, all_.post_gate, all_.out);
  }
  HYENAREC_INLINE void watch_backward(int64_t s, int64_t begin, scan::LookAhead& ahead) const {
    rows_.watch(s, begin, ahead, all_.u, all_.pre_gate, all_.post_gate, all_.grad);
    rows_.watch(s, begin, ahead, all_.u_grad, all_.pre_gate_grad, all_.post_gate_grad);
  }

 private:
  const LegendreConvRows<scalar_t>& all_;
  const scan::TaskRows<V, scalar_t> rows_;
};

}  // namespace hyenarec
