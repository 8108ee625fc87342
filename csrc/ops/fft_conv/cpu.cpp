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

Plan plan_of(const FftConvArguments& arguments) {
  const auto& u = arguments.u;
  return {u.size(0), u.size(1), u.size(2), arguments.kernel.size(1)};
}

// Calls run(workspace, group, tile) for each tile. Tiles of one group and block of channels come in order, in
// one thread. `workspace` [signals * rows, size] is zero on first use, and past `length` it must stay so.
template <typename compute_t, typename Run>
void for_each_tile(const Plan& plan, int64_t signals, const Run& run) {
  at::parallel_for(0, plan.channel_blocks * plan.groups, 1, [&](int64_t first_job, int64_t last_job) {
    const c10::InferenceMode no_autograd;  // worker threads do not inherit the caller's state
    const auto workspace =
        at::zeros({signals * plan.tile_rows(), plan.size}, c10::CppTypeToScalarType<compute_t>::value);
    for (int64_t job = first_job; job < last_job; ++job) {
      cpu::fft_conv::over_tiles(
          plan, job, [&](int64_t group, const Tile& tile) { run(workspace, group, tile); });
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

// Spectrum of the lags in reach, with skip at lag 0: [D, bins].
at::Tensor kernel_spectrum(const Plan& plan, const FftConvArguments& arguments) {
  auto padded = at::zeros({plan.channels, plan.size}, arguments.kernel.options());
  padded.narrow(1, 0, plan.lags).copy_(arguments.kernel.narrow(1, 0, plan.lags));
  if (arguments.skip) padded.select(1, 0).add_(*arguments.skip);
  return forward_fft(padded);
}

at::Tensor fft_conv_cpu(const FftConvArguments& arguments) {
  const auto& u = arguments.u;
  detail::check_cpu_activation_type({"fft_conv", "u", u});
  auto out = at::empty(u.sizes(), u.options());
  if (out.numel() == 0) return out;

  const auto plan = plan_of(arguments);
  const auto input = readable(u), pre_gate = readable(arguments.pre_gate);
  const auto post_gate = readable(arguments.post_gate);
  const auto spectrum = kernel_spectrum(plan, arguments);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, u.scalar_type(), "fft_conv", [&] {
    using compute_t = at::opmath_type<scalar_t>;
    const auto x = rows_of<scalar_t>(input), pre = rows_of<scalar_t>(pre_gate);
    const auto post = rows_of<scalar_t>(post_gate);
    const auto to = rows_of_result<scalar_t>(out);
    for_each_tile<compute_t>(plan, 1, [&](const at::Tensor& workspace, int64_t /*group*/, const Tile& tile) {
      const TileWork<memory_t<scalar_t>, compute_t> work{plan, tile};
      const auto rows = workspace.narrow(0, 0, tile.rows());
      work.read(x, pre, rows.mutable_data_ptr<compute_t>());
      const auto spectra = forward_fft(rows);
      work.filter(pairs<compute_t>(spectra), pairs<compute_t>(spectrum), 1);
      work.write(inverse_fft(spectra, plan.size).template const_data_ptr<compute_t>(), post, to);
    });
  });
  return out;
}

// The backward pass of tiles of scalar_t.
template <typename scalar_t>
struct BackwardTiles {
  using compute_t = at::opmath_type<scalar_t>;
  using memory = memory_t<scalar_t>;

  const Plan& plan;
  const FftConvWanted& wanted;
  Rows<const memory> grad, u, pre_gate, post_gate;
  at::Tensor spectrum;  // of the kernel
  Rows<memory> u_grad, pre_grad, post_grad;
  at::Tensor sums;  // of cross-spectra [groups, D, bins]

  void operator()(const at::Tensor& workspace, int64_t group, const Tile& tile) const {
    const TileWork<memory, compute_t> work{plan, tile};
    const bool needs_z = wanted.needs_z(), needs_h = wanted.needs_h();
    const int64_t rows = tile.rows(), h_row = needs_z && needs_h ? rows : 0;
    auto* memory_of_rows = workspace.mutable_data_ptr<compute_t>();
    if (needs_z) work.read(u, pre_gate, memory_of_rows);
    if (needs_h) work.read(grad, post_gate, memory_of_rows + h_row * plan.size);
    const auto spectra = forward_fft(workspace.narrow(0, 0, (needs_z + needs_h) * rows));
    auto *z = pairs<compute_t>(spectra), *h = z + h_row * 2 * plan.bins;
    if (wanted.correlation()) work.correlate(z, h, pairs<compute_t>(sums), group);
    if (!wanted.post_gate && !wanted.of_z()) return;

    const auto* kernel = pairs<compute_t>(spectrum);
    if (wanted.post_gate) work.filter(z, kernel, 1);
    if (wanted.of_z()) work.filter(h, kernel, -1);
    // One call for both, since each sets up its transform anew.
    const int64_t count = (wanted.post_gate + wanted.of_z()) * rows;
    const auto results = inverse_fft(spectra.narrow(0, wanted.post_gate ? 0 : h_row, count), plan.size);
    const auto* y = results.const_data_ptr<compute_t>();
    const auto* z_grad = y + (count - rows) * plan.size;
    if (wanted.post_gate) work.write(y, grad, post_grad);
    if (wanted.u) work.write(z_grad, pre_gate, u_grad);
    if (wanted.pre_gate) work.write(z_grad, u, pre_grad);
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
  const auto& [u, kernel, skip, pre_gate, post_gate] = arguments.forward;
  detail::check_cpu_activation_type({"fft_conv_backward", "u", u});
  const auto gradients = detail::empty_gradients(arguments.forward, arguments.needs_grad);
  for (int i : {1, 2}) gradients[i].zero_();  // lags beyond the sequence have no gradient
  const FftConvWanted wanted(gradients);
  if (u.numel() == 0 || !(wanted.needs_z() || wanted.needs_h())) return std::tuple_cat(gradients);

  const auto plan = plan_of(arguments.forward);
  const auto output_grad = readable(arguments.grad), input = readable(u);
  const auto pre = readable(pre_gate), post = readable(post_gate);
  const auto spectrum = kernel_spectrum(plan, arguments.forward);
  const auto sums = wanted.correlation()
                        ? at::zeros({plan.groups, plan.channels, plan.bins}, spectrum.options())
                        : at::Tensor();
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, u.scalar_type(), "fft_conv_backward", [&] {
    using compute_t = at::opmath_type<scalar_t>;
    const BackwardTiles<scalar_t> tiles{
        plan,
        wanted,
        rows_of<scalar_t>(output_grad),
        rows_of<scalar_t>(input),
        rows_of<scalar_t>(pre),
        rows_of<scalar_t>(post),
        spectrum,
        rows_of_result<scalar_t>(gradients[0]),
        rows_of_result<scalar_t>(gradients[3]),
        rows_of_result<scalar_t>(gradients[4]),
        sums};
    for_each_tile<compute_t>(plan, wanted.needs_z() + wanted.needs_h(), tiles);
    if (!wanted.correlation()) return;
    const auto lag_sums = correlation<compute_t>(plan, sums);
    if (wanted.kernel) gradients[1].narrow(1, 0, plan.lags).copy_(lag_sums.narrow(1, 0, plan.lags));
    if (wanted.skip) gradients[2].copy_(lag_sums.select(1, 0));
  });
  return std::tuple_cat(gradients);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("fft_conv", detail::checked<fft_conv_cpu>);
  m.impl("fft_conv_backward", detail::checked<fft_conv_backward_cpu>);
}

}  // namespace hyenarec
