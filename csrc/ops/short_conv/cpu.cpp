// short_conv on the CPU: rows shared among torch's threads.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../common/cpu/block_sums.h"
#include "../common/cpu/tensors.h"
#include "../common/raw_data.h"
#include "arguments.h"
#include "cpu.h"

namespace hyenarec {
namespace {

using cpu::short_conv::Filter, cpu::short_conv::rows_per_block;

at::Tensor short_conv_cpu(const ShortConvArguments& arguments) {
  const auto& [u, weight, bias, offsets] = arguments;
  detail::check_cpu_activation_type({"short_conv", "u", u});
  const auto starts = contiguous_or_undefined(offsets);
  const auto sequences = make_sequences("short_conv", u, starts);
  auto out = at::empty(u.sizes(), u.options());
  if (out.numel() == 0) return out;

  const int64_t channels = weight.size(0), width = weight.size(1);
  const auto input = with_unit_channel_stride(u);
  const auto taps = weight.t().contiguous();
  const auto shift = bias ? bias->contiguous() : at::zeros({channels}, weight.options());
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, u.scalar_type(), "short_conv", [&] {
    using param_t = at::opmath_type<scalar_t>;
    const Filter<param_t> filter{
        taps.const_data_ptr<param_t>(), shift.const_data_ptr<param_t>(), width, channels};
    const auto from = rows_of<scalar_t>(input);
    const auto to = rows_of_result<scalar_t>(out);
    at::parallel_for(0, sequences.rows, rows_per_block(channels), [&](int64_t first, int64_t last) {
      cpu::short_conv::forward(sequences, filter, from, to, first, last);
    });
  });
  return out;
}

Tensors<3> short_conv_backward_cpu(const ShortConvBackwardArguments& arguments) {
  const auto& [grad, forward, needs_grad] = arguments;
  const auto& [u, weight, bias, offsets] = forward;
  detail::check_cpu_activation_type({"short_conv_backward", "u", u});
  const auto starts = contiguous_or_undefined(offsets);
  const auto sequences = make_sequences("short_conv_backward", u, starts);
  const auto gradients = detail::empty_gradients(forward, needs_grad);
  const bool needs_u = gradients[0].numel() > 0;
  const bool needs_weight = gradients[1].numel() > 0, needs_bias = gradients[2].numel() > 0;
  const bool needs_sums = needs_weight || needs_bias;

  const int64_t channels = weight.size(0), width = weight.size(1);
  const auto output_grad = with_unit_channel_stride(grad), input = with_unit_channel_stride(u);
  const auto taps = weight.t().contiguous(), no_bias = at::zeros({channels}, weight.options());
  // One partial sum for each block of rows, added up in order: the same numbers on any number of threads.
  const int64_t block_rows = rows_per_block(channels);
  const int64_t blocks = needs_u || needs_sums ? at::divup(sequences.rows, block_rows) : 0;
  const auto partial = at::zeros({needs_sums ? blocks : 0, width + 1, channels}, weight.options());
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, u.scalar_type(), "short_conv_backward", [&] {
    using param_t = at::opmath_type<scalar_t>;
    const Filter<param_t> filter{
        taps.const_data_ptr<param_t>(), no_bias.const_data_ptr<param_t>(), width, channels};
    const auto g = rows_of<scalar_t>(output_grad), x = rows_of<scalar_t>(input);
    const auto to = rows_of_result<scalar_t>(gradients[0]);
    auto* sums = data_or_null<param_t>(partial);
    at::parallel_for(0, blocks, 1, [&](int64_t first_block, int64_t last_block) {
      for (int64_t block = first_block; block < last_block; ++block) {
        const int64_t first = block * block_rows, last = std::min(first + block_rows, sequences.rows);
        auto* of_block = sums ? sums + block * (width + 1) * channels : nullptr;
        cpu::short_conv::backward(sequences, filter, g, x, to, of_block, first, last);
      }
    });
    const auto totals = sum_over_blocks<param_t>(partial);
    if (needs_weight) gradients[1].copy_(totals.narrow(0, 0, width).t());
    if (needs_bias) gradients[2].copy_(totals[width]);
  });
  return std::tuple_cat(gradients);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("short_conv", detail::checked<short_conv_cpu>);
  m.impl("short_conv_backward", detail::checked<short_conv_backward_cpu>);
}

}  // namespace hyenarec
