// fft_conv on the CPU. Tiles of a few sequences and channels, small enough for the cache, go through
// gate + pad + transpose, ATen's real FFT, the product of spectra, the inverse FFT, and crop + gate +
// transpose. skip costs nothing: it is one more number at lag 0, so it joins the kernel before its FFT, and
// its gradient is the kernel's at lag 0.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/fft_irfft.h>
#include <ATen/ops/fft_rfft.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include "../common/cpu/tensors.h"
#include "arguments.h"
#include "cpu.h"

namespace hyenarec {
namespace {

using cpu::fft_conv::Plan, cpu::fft_conv::Tile, cpu::fft_conv::TileWork;

constexpr int64_t kCorrelationGrain = 1 << 14;

// Calls run(workspace, tile) for each tile. Tiles of one group and block of channels come in order, in
// one thread. `workspace` [signals * rows, size] is zero on first use, and past `length` it must stay so.
template <typename compute_t, typename Run>
void for_each_tile(const Plan& plan, int64_t signals, const Run& run) {
  at::parallel_for(0, plan.channel_blocks * plan.groups, 1, [&](int64_t first_job, int64_t last_job) {
    const c10::InferenceMode no_autograd;  // worker threads do not inherit the caller's state
    const auto workspace =
        at::zeros({signals * plan.tile_rows(), plan.size}, c10::CppTypeToScalarType<compute_t>::value);
    for (int64_t job = first_job; job < last_job; ++job) {
      cpu::fft_conv::over_tiles(plan, job, [&](const Tile& tile) { run(workspace, tile); });
    }
  });
}

// Rows to spectra and back. Copies nothing: ATen returns rows one after another, but does not promise to.
at::Tensor forward_fft(const at::Tensor& rows) { return at::fft_rfft(rows).contiguous(); }
at::Tensor inverse_fft(const at::Tensor& spectra, int64_t size) {
  return at::fft_irfft(spectra, size).contiguous();
}

// Complex numbers as pairs.
template <typename compute_t>
compute_t* pairs(const at::Tensor& spectra) {
  return reinterpret_cast<compute_t*>(spectra.mutable_data_ptr<c10::complex<compute_t>>());
}

// What both passes read. An absent gate is undefined; the spectrum [D, bins] is that of the lags in reach.
struct Inputs {
  Plan plan;
  at::Tensor u, pre_gate, post_gate, spectrum;

  explicit Inputs(const FftConvArguments& arguments)
      : plan(arguments.u.size(0), arguments.u.size(1), arguments.u.size(2), arguments.kernel.size(1)),
        u(readable(arguments.u)),
        pre_gate(readable(arguments.pre_gate)),
        post_gate(readable(arguments.post_gate)),
        spectrum(forward_fft(arguments.padded_kernel(0, plan.channels, plan.lags, plan.size))) {}
};

at::Tensor fft_conv_cpu(const FftConvArguments& arguments) {
  const auto& u = arguments.u;
  detail::check_cpu_activation_type({"fft_conv", "u", u});
  auto out = at::empty(u.sizes(), u.options());
  if (out.numel() == 0) return out;

  const Inputs in(arguments);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, u.scalar_type(), "fft_conv", [&] {
    using compute_t = at::opmath_type<scalar_t>;
    const auto run = [&](const at::Tensor& workspace, const Tile& tile) {
      const TileWork<memory_t<scalar_t>, compute_t> work{in.plan, tile};
      const auto rows = workspace.narrow(0, 0, tile.rows());
      work.read(rows_of<scalar_t>(in.u), rows_of<scalar_t>(in.pre_gate), rows.mutable_data_ptr<compute_t>());
      const auto spectra = forward_fft(rows);
      work.filter(pairs<compute_t>(spectra), pairs<compute_t>(in.spectrum), 1);
      const auto results = inverse_fft(spectra, in.plan.size);
      work.write(
          results.const_data_ptr<compute_t>(), rows_of<scalar_t>(in.post_gate),
          rows_of_result<scalar_t>(out));
    };
    for_each_tile<compute_t>(in.plan, 1, run);
  });
  return out;
}

// The backward pass of tiles of scalar_t.
template <typename scalar_t>
struct BackwardTiles {
  using compute_t = at::opmath_type<scalar_t>;

  const Inputs& in;
  const at::Tensor grad;
  const FftConvGradients& gradients;
  const at::Tensor& sums;  // of cross-spectra [groups, D, bins]

  void operator()(const at::Tensor& workspace, const Tile& tile) const {
    const TileWork<memory_t<scalar_t>, compute_t> work{in.plan, tile};
    const auto u = rows_of<scalar_t>(in.u), pre_gate = rows_of<scalar_t>(in.pre_gate);
    const auto output_grad = rows_of<scalar_t>(grad), post_gate = rows_of<scalar_t>(in.post_gate);
    const bool needs_z = gradients.needs_z(), needs_h = gradients.needs_h();
    const int64_t rows = tile.rows(), h_row = needs_z && needs_h ? rows : 0;
    auto* memory_of_rows = workspace.mutable_data_ptr<compute_t>();
    if (needs_z) work.read(u, pre_gate, memory_of_rows);
    if (needs_h) work.read(output_grad, post_gate, memory_of_rows + h_row * in.plan.size);
    const auto spectra = forward_fft(workspace.narrow(0, 0, (needs_z + needs_h) * rows));
    auto *z = pairs<compute_t>(spectra), *h = z + h_row * 2 * in.plan.bins;
    if (gradients.correlation()) work.correlate(z, h, pairs<compute_t>(sums));
    if (!gradients.post_gate && !gradients.of_z()) return;

    const auto* kernel = pairs<compute_t>(in.spectrum);
    if (gradients.post_gate) work.filter(z, kernel, 1);
    if (gradients.of_z()) work.filter(h, kernel, -1);
    // One call for both, since each sets up its transform anew.
    const int64_t count = (gradients.post_gate + gradients.of_z()) * rows;
    const auto results = inverse_fft(spectra.narrow(0, gradients.post_gate ? 0 : h_row, count), in.plan.size);
    const auto* y = results.const_data_ptr<compute_t>();
    const auto* z_grad = y + (count - rows) * in.plan.size;
    if (gradients.post_gate) work.write(y, output_grad, rows_of_result<scalar_t>(gradients.all[4]));
    if (gradients.u) work.write(z_grad, pre_gate, rows_of_result<scalar_t>(gradients.all[0]));
    if (gradients.pre_gate) work.write(z_grad, u, rows_of_result<scalar_t>(gradients.all[3]));
  }
};

// Gradients of the kernel and of skip from the groups' summed cross-spectra [groups, D, bins].
template <typename compute_t>
at::Tensor correlation(const Plan& plan, const at::Tensor& sums) {
  auto* total = pairs<compute_t>(sums);
  const int64_t count = plan.channels * plan.bins * 2;
  at::parallel_for(0, count, kCorrelationGrain, [&](int64_t first, int64_t last) {
    for (int64_t group = 1; group < plan.groups; ++group) {
      for (int64_t i = first; i < last; ++i) total[i] += total[group * count + i];
    }
  });
  return inverse_fft(sums.select(0, 0), plan.size);
}

Tensors<5> fft_conv_backward_cpu(const FftConvBackwardArguments& arguments) {
  const auto& u = arguments.forward.u;
  detail::check_cpu_activation_type({"fft_conv_backward", "u", u});
  const FftConvGradients gradients(arguments);
  if (u.numel() == 0 || !gradients.any()) return std::tuple_cat(gradients.all);

  const Inputs in(arguments.forward);
  const auto& plan = in.plan;
  const auto sums = gradients.correlation()
                        ? at::zeros({plan.groups, plan.channels, plan.bins}, in.spectrum.options())
                        : at::Tensor();
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, u.scalar_type(), "fft_conv_backward", [&] {
    using compute_t = at::opmath_type<scalar_t>;
    const BackwardTiles<scalar_t> tiles{in, readable(arguments.grad), gradients, sums};
    for_each_tile<compute_t>(plan, gradients.needs_z() + gradients.needs_h(), tiles);
    if (gradients.correlation())
      gradients.store_correlation(correlation<compute_t>(plan, sums), 0, plan.lags);
  });
  return std::tuple_cat(gradients.all);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("fft_conv", detail::checked<fft_conv_cpu>);
  m.impl("fft_conv_backward", detail::checked<fft_conv_backward_cpu>);
}

}  // namespace hyenarec
