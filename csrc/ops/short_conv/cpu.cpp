// short_conv on the CPU: a row (one event, all channels) at a time, vectorised along the channels, rows
// shared among the threads. The input gradient is the same filter run backwards in time.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "../common/argument_checks.h"
#include "../common/channels_last.h"
#include "../common/cpu/sequences.h"
#include "../common/cpu/simd.h"
#include "short_conv.h"

namespace hyenarec {
namespace {

constexpr int64_t kBlockElements =
    32768;                                // a thread takes at least this many elements: it stays in its cache
constexpr int64_t kMostBlockRows = 1024;  // as many as single precision adds up without losing digits

// Calls visit(sequence, first, last) for each stretch of events [first, last) of a sequence among these rows.
template <typename Visit>
void for_each_stretch(const Sequences& sequences, int64_t first_row, int64_t last_row, const Visit& visit) {
  for (int64_t row = first_row, s = sequences.holding(first_row); row < last_row; ++s) {
    const int64_t start = sequences.start(s);
    const int64_t end = std::min(start + sequences.size(s), last_row);
    if (row < end) visit(s, row - start, end - start);
    row = std::max(row, end);
  }
}

// out(t) = bias + sum_{w < width} taps[w] u(t - w) for t in [first, last), first >= width - 1.
template <typename scalar_t, typename param_t, int width>
HYENAREC_SIMD void filter_rows(
    const scalar_t* u,
    int64_t u_stride,
    const param_t* taps,
    const param_t* bias,
    scalar_t* out,
    int64_t out_stride,
    int64_t first,
    int64_t last,
    int64_t channels) {
  for (int64_t t = first; t < last; ++t) {
    const scalar_t* __restrict from = u + t * u_stride;
    scalar_t* __restrict to = out + t * out_stride;
    for (int64_t d = 0; d < channels; ++d) {
      param_t sum = bias[d];
      for (int w = 0; w < width; ++w)
        sum += taps[w * channels + d] * static_cast<param_t>(from[d - w * u_stride]);
      to[d] = static_cast<scalar_t>(sum);
    }
  }
}

// sums[w] += grad(t) u(t - w) for w < width, and sums[bias_row] += grad(t), for t in [first, last).
template <typename scalar_t, typename param_t, int width>
HYENAREC_SIMD void add_products(
    const scalar_t* grad,
    int64_t grad_stride,
    const scalar_t* u,
    int64_t u_stride,
    param_t* __restrict sums,
    int64_t bias_row,
    int64_t first,
    int64_t last,
    int64_t channels) {
  param_t* __restrict bias_sums = sums + bias_row * channels;
  for (int64_t t = first; t < last; ++t) {
    const scalar_t* grad_row = grad + t * grad_stride;
    const scalar_t* u_row = u + t * u_stride;
    for (int64_t d = 0; d < channels; ++d) {
      const auto g = static_cast<param_t>(grad_row[d]);
      for (int w = 0; w < width; ++w)
        sums[w * channels + d] += g * static_cast<param_t>(u_row[d - w * u_stride]);
      bias_sums[d] += g;
    }
  }
}

// The first width - 1 events reach fewer taps back, so each number of taps has a function of its own.
template <typename scalar_t, typename param_t, typename Widths>
struct Filters;
template <typename scalar_t, typename param_t, int... index>
struct Filters<scalar_t, param_t, std::integer_sequence<int, index...>> {
  static constexpr decltype(&filter_rows<scalar_t, param_t, 1>) filter[] = {
      &filter_rows<scalar_t, param_t, index + 1>...};
  static constexpr decltype(&add_products<scalar_t, param_t, 1>) products[] = {
      &add_products<scalar_t, param_t, index + 1>...};
};
template <typename scalar_t, typename param_t>
using AllFilters = Filters<scalar_t, param_t, std::make_integer_sequence<int, kShortConvMaxWidth>>;

// Calls run(taps, first, last) with the number of taps that the events [first, last) reach.
template <typename Run>
void by_reach(int64_t width, int64_t first, int64_t last, const Run& run) {
  for (; first < last && first < width - 1; ++first) run(first + 1, first, first + 1);
  if (first < last) run(width, first, last);
}

template <typename scalar_t, typename param_t>
void filter_stretch(
    Events<const scalar_t> u,
    const param_t* taps,
    const param_t* bias,
    Events<scalar_t> out,
    int64_t first,
    int64_t last,
    int64_t width,
    int64_t channels) {
  by_reach(width, first, last, [&](int64_t reach, int64_t from, int64_t to) {
    AllFilters<scalar_t, param_t>::filter[reach - 1](
        u.data, u.stride, taps, bias, out.data, out.stride, from, to, channels);
  });
}

template <typename scalar_t, typename param_t>
void add_stretch(
    Events<const scalar_t> grad,
    Events<const scalar_t> u,
    param_t* sums,
    int64_t first,
    int64_t last,
    int64_t width,
    int64_t channels) {
  by_reach(width, first, last, [&](int64_t reach, int64_t from, int64_t to) {
    AllFilters<scalar_t, param_t>::products[reach - 1](
        grad.data, grad.stride, u.data, u.stride, sums, width, from, to, channels);
  });
}

// weight_grad[d, w] and bias_grad[d] from the blocks' sums [blocks, width + 1, channels], always in the same
// order.
template <typename param_t>
void add_up(
    const param_t* partial,
    int64_t blocks,
    int64_t width,
    int64_t channels,
    param_t* weight_grad,
    param_t* bias_grad) {
  std::vector<double> sums((width + 1) * channels, 0.0);
  for (int64_t block = 0; block < blocks; ++block) {
    for (double& sum : sums) sum += *partial++;
  }
  for (int64_t d = 0; d < channels; ++d) {
    for (int64_t w = 0; weight_grad && w < width; ++w)
      weight_grad[d * width + w] = static_cast<param_t>(sums[w * channels + d]);
    if (bias_grad) bias_grad[d] = static_cast<param_t>(sums[width * channels + d]);
  }
}

int64_t rows_per_block(int64_t channels) {
  return std::clamp<int64_t>(kBlockElements / std::max<int64_t>(channels, 1), 16, kMostBlockRows);
}

at::Tensor short_conv_cpu(
    const at::Tensor& u,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& offsets) {
  detail::check_short_conv_arguments(u, weight, bias, offsets);
  detail::check_cpu_activation_type({"short_conv", "u", u});
  const auto starts = contiguous_or_undefined(offsets);
  const auto sequences = make_sequences("short_conv", u, starts);
  auto out = at::empty(u.sizes(), u.options());
  if (out.numel() == 0) return out;

  const auto rows = with_unit_channel_stride(u);
  const auto taps = weight.t().contiguous();
  const auto shift = bias ? bias->contiguous() : at::zeros({weight.size(0)}, weight.options());
  const int64_t channels = weight.size(0), width = weight.size(1);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, u.scalar_type(), "short_conv", [&] {
    using param_t = at::opmath_type<scalar_t>;
    const auto* u_data = rows.const_data_ptr<scalar_t>();
    const auto* taps_data = taps.const_data_ptr<param_t>();
    const auto* bias_data = shift.const_data_ptr<param_t>();
    auto* out_data = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, sequences.rows, rows_per_block(channels), [&](int64_t first_row, int64_t last_row) {
      for_each_stretch(sequences, first_row, last_row, [&](int64_t s, int64_t first, int64_t last) {
        filter_stretch<scalar_t, param_t>(
            events_of(u_data, rows, sequences, s), taps_data, bias_data,
            events_of(out_data, out, sequences, s), first, last, width, channels);
      });
    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> short_conv_backward_cpu(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& offsets,
    std::array<bool, 3> needs_grad) {
  detail::check_short_conv_backward_arguments(grad, u, weight, offsets);
  detail::check_cpu_activation_type({"short_conv_backward", "u", u});
  const auto starts = contiguous_or_undefined(offsets);
  const auto sequences = make_sequences("short_conv_backward", u, starts);
  const int64_t channels = weight.size(0), width = weight.size(1);
  const bool needs_u = needs_grad[0], needs_sums = needs_grad[1] || needs_grad[2];
  auto u_grad = detail::empty_gradient(needs_u, u);

  const auto grads = with_unit_channel_stride(grad);
  const auto rows = with_unit_channel_stride(u);
  const auto taps = weight.t().contiguous();
  const auto no_bias = at::zeros({channels}, weight.options());
  // One partial sum for each block of rows, added up in order: the same numbers on any number of threads.
  const int64_t block_rows = rows_per_block(channels);
  const int64_t blocks =
      u.numel() == 0 || !(needs_u || needs_sums) ? 0 : at::divup(sequences.rows, block_rows);
  const auto partial = at::zeros({blocks, width + 1, channels}, weight.options());
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, u.scalar_type(), "short_conv_backward", [&] {
    using param_t = at::opmath_type<scalar_t>;
    const auto* grad_data = grads.const_data_ptr<scalar_t>();
    const auto* u_data = rows.const_data_ptr<scalar_t>();
    const auto* taps_data = taps.const_data_ptr<param_t>();
    const auto* zeros = no_bias.const_data_ptr<param_t>();
    auto* u_grad_data = u_grad.mutable_data_ptr<scalar_t>();
    auto* partial_data = partial.mutable_data_ptr<param_t>();
    at::parallel_for(0, blocks, 1, [&](int64_t first_block, int64_t last_block) {
      for (int64_t block = first_block; block < last_block; ++block) {
        const int64_t first_row = block * block_rows;
        const int64_t last_row = std::min(first_row + block_rows, sequences.rows);
        auto* sums = partial_data + block * (width + 1) * channels;
        for_each_stretch(sequences, first_row, last_row, [&](int64_t s, int64_t first, int64_t last) {
          const int64_t size = sequences.size(s);
          const auto g = events_of(grad_data, grads, sequences, s);
          if (needs_u) {
            filter_stretch<scalar_t, param_t>(
                g.mirrored(size), taps_data, zeros,
                events_of(u_grad_data, u_grad, sequences, s).mirrored(size), size - last, size - first, width,
                channels);
          }
          if (needs_sums) {
            add_stretch<scalar_t, param_t>(
                g, events_of(u_data, rows, sequences, s), sums, first, last, width, channels);
          }
        });
      }
    });
  });
  auto weight_grad = detail::empty_gradient(needs_grad[1], weight);
  auto bias_grad = detail::empty_gradient(needs_grad[2], weight.select(1, 0));
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "short_conv_backward", [&] {
    add_up(
        partial.const_data_ptr<scalar_t>(), blocks, width, channels,
        needs_grad[1] ? weight_grad.mutable_data_ptr<scalar_t>() : nullptr,
        needs_grad[2] ? bias_grad.mutable_data_ptr<scalar_t>() : nullptr);
  });
  return {u_grad, weight_grad, bias_grad};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("short_conv", hyenarec::short_conv_cpu);
  m.impl("short_conv_backward", hyenarec::short_conv_backward_cpu);
}
