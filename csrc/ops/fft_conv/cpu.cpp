// fft_conv on the CPU. Tiles of a few sequences and channels, small enough for the cache, go through
// gate + pad + transpose, ATen's real FFT, the product of spectra, the inverse FFT, and crop + gate +
// transpose. skip costs nothing: it is one more number at lag 0, so it joins the kernel before its FFT, and
// its gradient is the kernel's at lag 0.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/fft_irfft.h>
#include <ATen/ops/fft_rfft.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <torch/library.h>

#include <algorithm>
#include <array>

#include "../common/argument_checks.h"
#include "../common/channels_last.h"
#include "../common/cpu/simd.h"
#include "fft_conv.h"
#include "fft_size.h"

namespace hyenarec {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// Padded numbers that one FFT call takes: few enough for the cache, enough to pay for each call's set-up.
constexpr int64_t kTileElements = 1 << 17;
constexpr int64_t kFewestTileChannels = 32;
constexpr int64_t kMostTileChannels = 64;
// The work is cut into 4 to 64 jobs whatever the number of threads, so that results do not depend on it.
constexpr int64_t kFewestJobs = 4;
constexpr int64_t kMostJobs = 64;

constexpr int64_t kCorrelationGrain = 1 << 14;

// Fewer channels when there are too few sequences to share out.
int64_t channels_per_tile(int64_t batch, int64_t channels) {
  return std::min(channels, batch < kFewestJobs ? kFewestTileChannels : kMostTileChannels);
}

// How a call is cut. A job is a block of channels and a group of sequences, taken `tile_sequences` at a time.
struct Plan {
  int64_t batch, length, channels, lags, size, bins;
  int64_t tile_channels, channel_blocks, tile_sequences, groups;

  Plan(const at::Tensor& u, const at::Tensor& kernel)
      : batch(u.size(0)),
        length(u.size(1)),
        channels(u.size(2)),
        lags(fft_conv_lags(length, kernel.size(1))),
        size(fft_conv_size(length, kernel.size(1))),
        bins(size / 2 + 1),
        tile_channels(channels_per_tile(batch, channels)),
        channel_blocks(at::divup(channels, tile_channels)),
        tile_sequences(std::clamp<int64_t>(kTileElements / (size * tile_channels), 1, batch)),
        groups(std::clamp<int64_t>(kMostJobs / channel_blocks, 1, at::divup(batch, tile_sequences))) {}

  int64_t tile_rows() const { return tile_sequences * tile_channels; }
};

// A part of [B, L, D], all of the time. Each (sequence, channel) of it is a row, padded to the FFT's size.
struct Tile {
  int64_t first_sequence, sequences, first_channel, channels;

  int64_t rows() const { return sequences * channels; }
};

// Calls run(workspace, group, tile) for each tile. Tiles of one group and block of channels come in order, in
// one thread. `workspace` [signals * rows, size] is zero on first use, and past `length` it must stay so.
template <typename compute_t, typename Run>
void for_each_tile(const Plan& plan, int64_t signals, const Run& run) {
  at::parallel_for(0, plan.channel_blocks * plan.groups, 1, [&](int64_t first_job, int64_t last_job) {
    const c10::InferenceMode no_autograd;  // worker threads do not inherit the caller's state
    const auto workspace =
        at::zeros({signals * plan.tile_rows(), plan.size}, c10::CppTypeToScalarType<compute_t>::value);
    for (int64_t job = first_job; job < last_job; ++job) {
      const int64_t group = job / plan.channel_blocks;
      const int64_t channel = job % plan.channel_blocks * plan.tile_channels;
      const int64_t channels = std::min(plan.tile_channels, plan.channels - channel);
      const int64_t last = plan.batch * (group + 1) / plan.groups;
      for (int64_t s = plan.batch * group / plan.groups; s < last; s += plan.tile_sequences) {
        run(workspace, group, Tile{s, std::min(plan.tile_sequences, last - s), channel, channels});
      }
    }
  });
}

// A tensor [B, L, D] with channels side by side, or an absent gate (data = nullptr: ones).
template <typename scalar_t>
struct Signal {
  scalar_t* data = nullptr;
  int64_t sequence_stride = 0;
  int64_t event_stride = 0;

  scalar_t* at(int64_t sequence, int64_t channel) const {
    return data ? data + sequence * sequence_stride + channel : nullptr;
  }
};

template <typename scalar_t>
Signal<const scalar_t> signal_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  return {tensor.const_data_ptr<scalar_t>(), tensor.stride(0), tensor.stride(1)};
}

template <typename scalar_t>
Signal<scalar_t> result_of(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr<scalar_t>(), tensor.stride(0), tensor.stride(1)};
}

// rows[d][t] = from[t][d] gate[t][d] for one sequence.
template <typename scalar_t, typename compute_t>
HYENAREC_SIMD void gate_and_transpose(
    const scalar_t* from,
    int64_t from_stride,
    const scalar_t* gate,
    int64_t gate_stride,
    compute_t* rows,
    int64_t row_stride,
    int64_t length,
    int64_t channels) {
  const int64_t whole_length = length / 8 * 8, whole_channels = channels / 8 * 8;
  for (int64_t t = 0; t < whole_length; t += 8) {
    for (int64_t d = 0; d < whole_channels; d += 8) {
      simd::Vector<compute_t> block[8];
      for (int64_t i = 0; i < 8; ++i) {
        block[i] = simd::load(from + (t + i) * from_stride + d);
        if (gate) block[i] *= simd::load(gate + (t + i) * gate_stride + d);
      }
      simd::transpose<compute_t>(block);
      for (int64_t i = 0; i < 8; ++i) simd::store(block[i], rows + (d + i) * row_stride + t);
    }
  }
  for (int64_t d = 0; d < channels; ++d) {
    for (int64_t t = d < whole_channels ? whole_length : 0; t < length; ++t) {
      const auto value = static_cast<compute_t>(from[t * from_stride + d]);
      rows[d * row_stride + t] = gate ? value * static_cast<compute_t>(gate[t * gate_stride + d]) : value;
    }
  }
}

// to[t][d] = rows[d][t] gate[t][d] for one sequence.
template <typename scalar_t, typename compute_t>
HYENAREC_SIMD void transpose_and_gate(
    const compute_t* rows,
    int64_t row_stride,
    const scalar_t* gate,
    int64_t gate_stride,
    scalar_t* to,
    int64_t to_stride,
    int64_t length,
    int64_t channels) {
  const int64_t whole_length = length / 8 * 8, whole_channels = channels / 8 * 8;
  for (int64_t t = 0; t < whole_length; t += 8) {
    for (int64_t d = 0; d < whole_channels; d += 8) {
      simd::Vector<compute_t> block[8];
      for (int64_t i = 0; i < 8; ++i) block[i] = simd::load(rows + (d + i) * row_stride + t);
      simd::transpose<compute_t>(block);
      for (int64_t i = 0; i < 8; ++i) {
        if (gate) block[i] *= simd::load(gate + (t + i) * gate_stride + d);
        simd::store(block[i], to + (t + i) * to_stride + d);
      }
    }
  }
  for (int64_t d = 0; d < channels; ++d) {
    for (int64_t t = d < whole_channels ? whole_length : 0; t < length; ++t) {
      const compute_t value = rows[d * row_stride + t];
      to[t * to_stride + d] =
          static_cast<scalar_t>(gate ? value * static_cast<compute_t>(gate[t * gate_stride + d]) : value);
    }
  }
}

// Rows to spectra and back. Copies nothing: ATen returns rows one after another, but does not promise to.
at::Tensor forward_fft(const at::Tensor& rows) { return at::fft_rfft(rows).contiguous(); }
at::Tensor inverse_fft(const at::Tensor& spectra, int64_t size) {
  return at::fft_irfft(spectra, size).contiguous();
}

// Complex numbers as pairs (real, imaginary). The sign is that of b's imaginary part: -1 takes its conjugate.
template <typename compute_t>
HYENAREC_SIMD void multiply_by(
    compute_t* __restrict a, const compute_t* __restrict b, compute_t sign, int64_t bins) {
  for (int64_t i = 0; i < 2 * bins; i += 2) {
    const compute_t real = a[i], imaginary = a[i + 1], b_imaginary = sign * b[i + 1];
    a[i] = real * b[i] - imaginary * b_imaginary;
    a[i + 1] = real * b_imaginary + imaginary * b[i];
  }
}

// sum += conj(a) b
template <typename compute_t>
HYENAREC_SIMD void add_conjugate_product(
    compute_t* __restrict sum, const compute_t* __restrict a, const compute_t* __restrict b, int64_t bins) {
  for (int64_t i = 0; i < 2 * bins; i += 2) {
    sum[i] += a[i] * b[i] + a[i + 1] * b[i + 1];
    sum[i + 1] += a[i] * b[i + 1] - a[i + 1] * b[i];
  }
}

template <typename compute_t>
compute_t* numbers(const at::Tensor& spectra) {
  return reinterpret_cast<compute_t*>(spectra.mutable_data_ptr<c10::complex<compute_t>>());
}

// One tile at work: its tensors are narrow views of the workspace, or what the FFT returned.
template <typename scalar_t>
struct TileWork {
  using compute_t = at::opmath_type<scalar_t>;
  const Plan& plan;
  const Tile& tile;

  void read(Signal<const scalar_t> from, Signal<const scalar_t> gate, const at::Tensor& rows) const {
    for (int64_t s = 0; s < tile.sequences; ++s) {
      gate_and_transpose(
          from.at(tile.first_sequence + s, tile.first_channel), from.event_stride,
          gate.at(tile.first_sequence + s, tile.first_channel), gate.event_stride,
          rows.mutable_data_ptr<compute_t>() + s * tile.channels * plan.size, plan.size, plan.length,
          tile.channels);
    }
  }

  void write(const at::Tensor& rows, Signal<const scalar_t> gate, Signal<scalar_t> to) const {
    for (int64_t s = 0; s < tile.sequences; ++s) {
      transpose_and_gate(
          rows.const_data_ptr<compute_t>() + s * tile.channels * plan.size, plan.size,
          gate.at(tile.first_sequence + s, tile.first_channel), gate.event_stride,
          to.at(tile.first_sequence + s, tile.first_channel), to.event_stride, plan.length, tile.channels);
    }
  }

  void filter(const at::Tensor& spectra, const at::Tensor& kernel_spectrum, compute_t sign) const {
    const auto* kernel = numbers<compute_t>(kernel_spectrum) + tile.first_channel * 2 * plan.bins;
    const int64_t bins = tile.channels * plan.bins;
    for (int64_t s = 0; s < tile.sequences; ++s) {
      multiply_by(numbers<compute_t>(spectra) + s * 2 * bins, kernel, sign, bins);
    }
  }

  // sums[group] += conj(spectra of z) * (spectra of h), over the sequences of the tile
  void correlate(const at::Tensor& z, const at::Tensor& h, const at::Tensor& sums, int64_t group) const {
    auto* sum = numbers<compute_t>(sums) + (group * plan.channels + tile.first_channel) * 2 * plan.bins;
    const int64_t bins = tile.channels * plan.bins;
    for (int64_t s = 0; s < tile.sequences; ++s) {
      add_conjugate_product(
          sum, numbers<compute_t>(z) + s * 2 * bins, numbers<compute_t>(h) + s * 2 * bins, bins);
    }
  }
};

// Spectrum of the lags in reach, with skip at lag 0: [D, bins].
at::Tensor kernel_spectrum(const Plan& plan, const at::Tensor& kernel, const OptionalTensor& skip) {
  auto padded = at::zeros({plan.channels, plan.size}, kernel.options());
  padded.narrow(1, 0, plan.lags).copy_(kernel.narrow(1, 0, plan.lags));
  if (skip) padded.select(1, 0).add_(*skip);
  return forward_fft(padded);
}

at::Tensor channels_last(const OptionalTensor& tensor) {
  return tensor ? with_unit_channel_stride(*tensor) : at::Tensor();
}

at::Tensor fft_conv_cpu(
    const at::Tensor& u,
    const at::Tensor& kernel,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate) {
  detail::check_fft_conv_arguments(u, kernel, skip, pre_gate, post_gate);
  detail::check_cpu_activation_type({"fft_conv", "u", u});
  auto out = at::empty(u.sizes(), u.options());
  if (out.numel() == 0) return out;

  const Plan plan(u, kernel);
  const auto input = channels_last(u), pre = channels_last(pre_gate), post = channels_last(post_gate);
  const auto spectrum = kernel_spectrum(plan, kernel, skip);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, u.scalar_type(), "fft_conv", [&] {
    using compute_t = at::opmath_type<scalar_t>;
    for_each_tile<compute_t>(plan, 1, [&](const at::Tensor& workspace, int64_t /*group*/, const Tile& tile) {
      const TileWork<scalar_t> work{plan, tile};
      const auto rows = workspace.narrow(0, 0, tile.rows());
      work.read(signal_of<scalar_t>(input), signal_of<scalar_t>(pre), rows);
      const auto spectra = forward_fft(rows);
      work.filter(spectra, spectrum, 1);
      work.write(inverse_fft(spectra, plan.size), signal_of<scalar_t>(post), result_of<scalar_t>(out));
    });
  });
  return out;
}

// Gradients of the kernel and of skip from the groups' summed cross-spectra [groups, D, bins].
template <typename compute_t>
at::Tensor correlation(const Plan& plan, const at::Tensor& sums) {
  auto* total = numbers<compute_t>(sums);
  const int64_t count = plan.channels * plan.bins * 2;
  at::parallel_for(0, count, kCorrelationGrain, [&](int64_t first, int64_t last) {
    for (int64_t group = 1; group < plan.groups; ++group) {
      for (int64_t i = first; i < last; ++i) total[i] += total[group * count + i];
    }
  });
  return inverse_fft(sums.select(0, 0), plan.size);
}

// With z = pre u, y = kernel * z + skip z, out = post y and h = post grad:
//   d/dpost = grad y,  d/dz = the correlation of kernel and h,  d/du = pre d/dz,  d/dpre = u d/dz,
//   d/dkernel[lag] = sum_{b, t} z[t - lag] h[t],  d/dskip = the same at lag 0.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> fft_conv_backward_cpu(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& kernel,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate,
    std::array<bool, 5> needs_grad) {
  detail::check_fft_conv_backward_arguments(grad, u, kernel, skip, pre_gate, post_gate);
  detail::check_cpu_activation_type({"fft_conv_backward", "u", u});
  const bool needs_u = needs_grad[0], needs_kernel = needs_grad[1], needs_skip = needs_grad[2] && skip;
  const bool needs_pre = needs_grad[3] && pre_gate, needs_post = needs_grad[4] && post_gate;
  const auto like_u = [&](bool needed) {
    return needed ? at::empty(u.sizes(), u.options()) : at::empty({0}, u.options());
  };
  auto u_grad = like_u(needs_u), pre_grad = like_u(needs_pre), post_grad = like_u(needs_post);
  auto kernel_grad = at::zeros(needs_kernel ? kernel.sizes() : at::IntArrayRef({0}), kernel.options());
  auto skip_grad = at::zeros({needs_skip ? kernel.size(0) : 0}, kernel.options());
  const auto gradients = [&] { return std::make_tuple(u_grad, kernel_grad, skip_grad, pre_grad, post_grad); };
  const bool needs_z_grad = needs_u || needs_pre, needs_correlation = needs_kernel || needs_skip;
  const bool needs_z = needs_correlation || needs_post, needs_h = needs_correlation || needs_z_grad;
  if (u.numel() == 0 || !(needs_z || needs_h)) return gradients();

  const Plan plan(u, kernel);
  const auto output_grad = channels_last(grad), input = channels_last(u);
  const auto pre = channels_last(pre_gate), post = channels_last(post_gate);
  const auto spectrum = kernel_spectrum(plan, kernel, skip);
  const auto sums = needs_correlation ? at::zeros({plan.groups, plan.channels, plan.bins}, spectrum.options())
                                      : at::Tensor();
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, u.scalar_type(), "fft_conv_backward", [&] {
    using compute_t = at::opmath_type<scalar_t>;
    const auto g = signal_of<scalar_t>(output_grad), x = signal_of<scalar_t>(input);
    const auto pre_signal = signal_of<scalar_t>(pre), post_signal = signal_of<scalar_t>(post);
    for_each_tile<compute_t>(
        plan, needs_z + needs_h, [&](const at::Tensor& workspace, int64_t group, const Tile& tile) {
          const TileWork<scalar_t> work{plan, tile};
          const int64_t h_row = needs_z && needs_h ? tile.rows() : 0;
          if (needs_z) work.read(x, pre_signal, workspace.narrow(0, 0, tile.rows()));
          if (needs_h) work.read(g, post_signal, workspace.narrow(0, h_row, tile.rows()));
          const auto spectra = forward_fft(workspace.narrow(0, 0, (needs_z + needs_h) * tile.rows()));
          const auto z = spectra.narrow(0, 0, tile.rows());
          const auto h = spectra.narrow(0, h_row, tile.rows());
          if (needs_correlation) work.correlate(z, h, sums, group);
          if (!needs_post && !needs_z_grad) return;
          if (needs_post) work.filter(z, spectrum, 1);
          if (needs_z_grad) work.filter(h, spectrum, -1);
          // One call for both, since each sets up its transform anew.
          const int64_t first = needs_post ? 0 : h_row;
          const int64_t count = (needs_post + needs_z_grad) * tile.rows();
          const auto results = inverse_fft(spectra.narrow(0, first, count), plan.size);
          if (needs_post) work.write(results.narrow(0, 0, tile.rows()), g, result_of<scalar_t>(post_grad));
          const auto z_grad = results.narrow(0, count - tile.rows(), tile.rows());
          if (needs_u) work.write(z_grad, pre_signal, result_of<scalar_t>(u_grad));
          if (needs_pre) work.write(z_grad, x, result_of<scalar_t>(pre_grad));
        });
    if (needs_correlation) {
      const auto lag_sums = correlation<compute_t>(plan, sums);
      if (needs_kernel) kernel_grad.narrow(1, 0, plan.lags).copy_(lag_sums.narrow(1, 0, plan.lags));
      if (needs_skip) skip_grad.copy_(lag_sums.select(1, 0));
    }
  });
  return gradients();
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("fft_conv", hyenarec::fft_conv_cpu);
  m.impl("fft_conv_backward", hyenarec::fft_conv_backward_cpu);
}
