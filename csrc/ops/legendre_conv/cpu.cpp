#include "cpu.h"

#include "../legendre_scan/cpu/scan_operator.h"
#include "arguments.h"

namespace hyenarec {
namespace {

// For scan::ScanKernels.
struct Inputs {
  using Arguments = LegendreConvArguments;
  using BackwardArguments = LegendreConvBackwardArguments;
  using Gradients = std::array<at::Tensor, 6>;
  static constexpr auto kName = "legendre_conv", kActivation = "u";
  static constexpr int kFirstParameter = 1;

  at::Tensor u, pre_gate, post_gate;

  explicit Inputs(const Arguments& arguments)
      : u(readable(arguments.u)),
        pre_gate(readable(arguments.pre_gate)),
        post_gate(readable(arguments.post_gate)) {}

  at::IntArrayRef output_sizes() const { return u.sizes(); }

  template <typename scalar_t>
  LegendreConvRows<memory_t<scalar_t>> rows(const Sequences& sequences) const {
    LegendreConvRows<memory_t<scalar_t>> rows{};
    rows.sequences = sequences;
    rows.u = rows_of<scalar_t>(u);
    rows.pre_gate = rows_of<scalar_t>(pre_gate);
    rows.post_gate = rows_of<scalar_t>(post_gate);
    return rows;
  }
  template <typename scalar_t>
  static bool add_gradients(LegendreConvRows<memory_t<scalar_t>>& rows, const Gradients& gradients) {
    const auto& [u, coeffs, decay, skip, pre_gate, post_gate] = gradients;
    rows.u_grad = rows_of_result<scalar_t>(u);
    rows.pre_gate_grad = rows_of_result<scalar_t>(pre_gate);
    rows.post_gate_grad = rows_of_result<scalar_t>(post_gate);
    return scan::go_past_cache({u, pre_gate, post_gate});
  }
  static GradientMask wanted(const Gradients& gradients) {
    const auto& [u, coeffs, decay, skip, pre_gate, post_gate] = gradients;
    return {u.numel() + pre_gate.numel() > 0, post_gate.numel() > 0, false};
  }

  template <typename V, typename scalar_t>
  HYENAREC_INLINE static LegendreConvIO<V, scalar_t> make_io(
      const LegendreConvRows<scalar_t>& rows, int64_t, const scan::Task& task, scan::Sums*) {
    return {rows, task};
  }
  // It has no parameters of its own.
  static int64_t sum_rows(const auto&) { return 0; }
  static void finish(const auto&...) {}
};
using Kernels = scan::ScanKernels<Inputs>;

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("legendre_conv", detail::checked<Kernels::forward>);
  m.impl("legendre_conv_with_states", detail::checked<Kernels::forward_with_states>);
  m.impl("legendre_conv_backward", detail::checked<Kernels::backward>);
}

}  // namespace hyenarec
