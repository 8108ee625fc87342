// dropout_add_layer_norm on the CPU: blocks of rows shared among torch's threads.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>

#include "../common/cpu/tensors.h"
#include "cpu.h"
#include "tensors.h"

namespace hyenarec {
namespace {

using cpu::dropout_add_layer_norm::Backward, cpu::dropout_add_layer_norm::Forward;
using cpu::dropout_add_layer_norm::rows_per_block;

// Calls run(branch_t{}, sum_t{}) with the types in which the kernel reads branch and sum.
template <typename Run>
void dispatch(at::ScalarType branch, at::ScalarType sum, const Run& run) {
  if (branch != sum) return run(at::BFloat16{}, float{});
  AT_DISPATCH_FLOATING_TYPES_AND(
      at::kBFloat16, sum, "dropout_add_layer_norm", [&] { run(scalar_t{}, scalar_t{}); });
}

cpu::dropout_add_layer_norm::DropoutSettings settings_of(double p, const OptionalTensor& seed) {
  const detail::DropoutLevels levels(p);
  return {levels.dropped, levels.scale, seed ? static_cast<uint64_t>(*seed->const_data_ptr<int64_t>()) : 0};
}

// The rows of a contiguous result [.., channels]; absent if it is [0], a gradient that isn't wanted.
template <typename scalar_t>
Rows<memory_t<scalar_t>> result_rows(const at::Tensor& result, int64_t channels) {
  if (result.numel() == 0) return {};
  return {reinterpret_cast<memory_t<scalar_t>*>(result.mutable_data_ptr<scalar_t>()), 0, channels};
}

Tensors<4> with_statistics_cpu(const DropoutAddLayerNormArguments& arguments) {
  const char* op = "dropout_add_layer_norm";
  detail::check_cpu_activation_type({op, "branch", arguments.branch});
  if (arguments.residual) detail::check_cpu_activation_type({op, "residual", *arguments.residual});
  const detail::NormForwardTensors tensors(arguments);
  const int64_t channels = tensors.channels, block_rows = rows_per_block(channels);
  dispatch(tensors.branch.scalar_type(), tensors.type, [&](auto branch_zero, auto sum_zero) {
    using branch_t = decltype(branch_zero);
    using sum_t = decltype(sum_zero);
    using call_t = Forward<memory_t<branch_t>, memory_t<sum_t>>;
    using compute = typename call_t::compute;
    const call_t call{
        .rows = tensors.rows,
        .channels = channels,
        .branch = rows_of<branch_t>(tensors.branch),
        .residual = rows_of<sum_t>(tensors.residual),
        .weight = tensors.weight.const_data_ptr<compute>(),
        .bias = tensors.bias.const_data_ptr<compute>(),
        .eps = arguments.eps,
        .settings = settings_of(arguments.p, arguments.seed),
        .normed = result_rows<sum_t>(tensors.normed, channels),
        .sum = result_rows<sum_t>(tensors.sum, channels),
        .mean = tensors.mean.mutable_data_ptr<compute>(),
        .rstd = tensors.rstd.mutable_data_ptr<compute>()};
    at::parallel_for(0, at::divup(call.rows, block_rows), 1, [&](int64_t first, int64_t last) {
      cpu::dropout_add_layer_norm::forward(call, block_rows, first, last);
    });
  });
  return tensors.results();
}

Tensors<4> backward_cpu(const DropoutAddLayerNormBackwardArguments& arguments) {
  detail::check_cpu_activation_type({"dropout_add_layer_norm_backward", "sum", arguments.sum});
  const detail::NormBackwardTensors tensors(arguments);
  const bool needs_weight = arguments.needs_grad[2], needs_bias = arguments.needs_grad[3];
  // One partial sum for each block of rows, added up in order: the same numbers on any number of threads.
  const int64_t channels = tensors.channels, block_rows = rows_per_block(channels);
  const int64_t blocks = at::divup(tensors.rows, block_rows);
  const int64_t summed_blocks = needs_weight || needs_bias ? blocks : 0;
  const auto sums = at::zeros({summed_blocks, 2, channels}, tensors.weight.options());
  dispatch(tensors.grad_branch.scalar_type(), tensors.type, [&](auto branch_zero, auto sum_zero) {
    using branch_t = decltype(branch_zero);
    using sum_t = decltype(sum_zero);
    using call_t = Backward<memory_t<branch_t>, memory_t<sum_t>>;
    using compute = typename call_t::compute;
    const call_t call{
        .rows = tensors.rows,
        .channels = channels,
        .grad_normed = rows_of<sum_t>(tensors.grad_normed),
        .grad_sum = rows_of<sum_t>(tensors.grad_sum),
        .sum = rows_of<sum_t>(tensors.sum),
        .mean = tensors.mean.const_data_ptr<compute>(),
        .rstd = tensors.rstd.const_data_ptr<compute>(),
        .weight = tensors.weight.const_data_ptr<compute>(),
        .settings = settings_of(arguments.p, arguments.seed),
        .grad_branch = result_rows<branch_t>(tensors.grad_branch, channels),
        .grad_residual = result_rows<sum_t>(tensors.grad_residual, channels),
        .needs_weight = needs_weight,
        .needs_bias = needs_bias,
        .sums = sums.mutable_data_ptr<compute>()};
    at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      cpu::dropout_add_layer_norm::backward(call, block_rows, first, last);
    });
    const auto add_up = [&](const compute* of_blocks, const at::Tensor& result) {
      cpu::dropout_add_layer_norm::add_up(
          of_blocks, summed_blocks, 2 * channels, channels, result.mutable_data_ptr<compute>());
    };
    if (needs_weight) add_up(call.sums, tensors.grad_weight);
    if (needs_bias) add_up(call.sums + channels, tensors.grad_bias);
  });
  return tensors.results(arguments);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("dropout_add_layer_norm_with_statistics", detail::checked<with_statistics_cpu>);
  m.impl("dropout_add_layer_norm_backward", detail::checked<backward_cpu>);
}

}  // namespace hyenarec
