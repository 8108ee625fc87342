#include "cpu.h"

#include <ATen/ops/zeros.h>

#include "../legendre_scan/cpu/scan_operator.h"
#include "arguments.h"

namespace hyenarec {
namespace {

// For scan::ScanKernels.
struct Inputs {
  using Arguments = HyenaMixerArguments;
  using BackwardArguments = HyenaMixerBackwardArguments;
  using Gradients = std::array<at::Tensor, 6>;
  template <typename scalar_t>
  using RowsOf = HyenaMixerRows<memory_t<scalar_t>, at::opmath_type<scalar_t>>;
  static constexpr auto kName = "hyena_mixer", kActivation = "x";
  static constexpr int kFirstParameter = 3;

  at::Tensor x, taps, biases;  // taps [W, 3D]

  explicit Inputs(const Arguments& arguments)
      : x(readable(arguments.x)),
        taps(arguments.short_weight.t().contiguous()),
        biases(
            arguments.short_bias ? arguments.short_bias->contiguous()
                                 : at::zeros({taps.size(1)}, taps.options())) {}

  std::vector<int64_t> output_sizes() const {
    auto sizes = x.sizes().vec();
    sizes.back() /= kParts;
    return sizes;
  }

  template <typename scalar_t>
  RowsOf<scalar_t> rows(const Sequences& sequences) const {
    RowsOf<scalar_t> rows{};
    rows.sequences = sequences;
    rows.channels = taps.size(1) / kParts;
    rows.width = taps.size(0);
    rows.taps = taps.const_data_ptr<at::opmath_type<scalar_t>>();
    rows.biases = biases.const_data_ptr<at::opmath_type<scalar_t>>();
    rows.x = rows_of<scalar_t>(x);
    return rows;
  }
  template <typename scalar_t>
  static bool add_gradients(RowsOf<scalar_t>& rows, const Gradients& gradients) {
    rows.x_grad = rows_of_result<scalar_t>(gradients[0]);
    return scan::go_past_cache({gradients[0]});
  }
  static GradientMask wanted(const Gradients& gradients) {
    const auto& [x, weight, bias, coeffs, decay, skip] = gradients;
    const bool through_filter = x.numel() + weight.numel() + bias.numel() > 0;
    return {through_filter, through_filter, false};
  }

  template <typename V, typename scalar_t>
  HYENAREC_INLINE static HyenaMixerIO<V, scalar_t> make_io(
      const HyenaMixerRows<scalar_t, simd::LaneOf<V>>& rows, int64_t chunk, const scan::Task& task,
      scan::Sums* sums) {
    return {rows, chunk, task, sums};
  }
  static int64_t sum_rows(const auto& rows) { return rows.sum_rows(); }
  template <typename compute_t>
  static void finish(
      const scan::ScanCall<compute_t>& call, const scan::Sums& sums, const auto& rows,
      const Gradients& gradients) {
    auto* const weights = data_or_null<compute_t>(gradients[1]);
    auto* const biases = data_or_null<compute_t>(gradients[2]);
    if (weights || biases) store_filter_grads(call, sums, rows, weights, biases);
  }
};
using Kernels = scan::ScanKernels<Inputs>;

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("hyena_mixer", detail::checked<Kernels::forward>);
  m.impl("hyena_mixer_with_states", detail::checked<Kernels::forward_with_states>);
  m.impl("hyena_mixer_backward", detail::checked<Kernels::backward>);
}

}  // namespace hyenarec
