// dropout_add_layer_norm on the CPU: blocks of rows shared among torch's threads.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../common/argument_checks.h"
#include "../common/channels_last.h"
#include "../common/cpu/tensors.h"
#include "arguments.h"
#include "cpu.h"

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

// [.., D] as rows; nullopt: absent.
at::Tensor rows_or_undefined(const OptionalTensor& tensor) {
  return tensor ? as_rows(*tensor) : at::Tensor();
}

// The rows of a contiguous result [.., channels]; absent if it is a gradient that isn't wanted.
template <typename scalar_t>
Rows<memory_t<scalar_t>> result_rows(const at::Tensor& result, int64_t channels, bool wanted = true) {
  if (!wanted) return {};
  return {reinterpret_cast<memory_t<scalar_t>*>(result.mutable_data_ptr<scalar_t>()), 0, channels};
}

NormAndStatistics with_statistics_cpu(const DropoutAddLayerNormArguments& arguments) {
  detail::check_dropout_add_layer_norm_arguments(arguments);
  const char* op = "dropout_add_layer_norm";
  const auto& [branch, residual, weight, bias, p, eps, seed] = arguments;
  detail::check_cpu_activation_type({op, "branch", branch});
  if (residual) detail::check_cpu_activation_type({op, "residual", *residual});
  const auto type = detail::type_of_sum(branch, residual), parameters = detail::parameter_type(type);
  const auto options = branch.options().dtype(type);
  const int64_t channels = branch.size(-1), rows = branch.numel() / channels;
  auto normed = at::empty(branch.sizes(), options), sum = at::empty(branch.sizes(), options);
  auto mean = at::empty(branch.sizes().slice(0, branch.dim() - 1), options.dtype(parameters));
  auto rstd = at::empty(mean.sizes(), mean.options());

  const auto branches = as_rows(branch.to(detail::kernel_type_of_branch(branch.scalar_type(), type)));
  const auto residuals = residual ? as_rows(residual->to(type)) : at::Tensor();
  const auto weights = weight.to(parameters).contiguous(), biases = bias.to(parameters).contiguous();
  const auto settings = settings_of(p, seed);
  const int64_t block_rows = rows_per_block(channels);
  dispatch(branches.scalar_type(), type, [&](auto branch_zero, auto sum_zero) {
    using branch_t = decltype(branch_zero);
    using sum_t = decltype(sum_zero);
    using call_t = Forward<memory_t<branch_t>, memory_t<sum_t>>;
    using compute = typename call_t::compute;
    const call_t call{
        .rows = rows,
        .channels = channels,
        .branch = rows_of<branch_t>(branches),
        .residual = rows_of<sum_t>(residuals),
        .weight = weights.const_data_ptr<compute>(),
        .bias = biases.const_data_ptr<compute>(),
        .eps = arguments.eps,
        .settings = settings,
        .normed = result_rows<sum_t>(normed, channels),
        .sum = result_rows<sum_t>(sum, channels),
        .mean = mean.mutable_data_ptr<compute>(),
        .rstd = rstd.mutable_data_ptr<compute>()};
    at::parallel_for(0, at::divup(rows, block_rows), 1, [&](int64_t first, int64_t last) {
      cpu::dropout_add_layer_norm::forward(call, block_rows, first, last);
    });
  });
  return {normed, sum, mean, rstd};
}

// result [channels] = the sum over blocks [blocks, channels], `stride` apart.
template <typename compute>
void add_up(
    const compute* blocks, int64_t count, int64_t stride, int64_t channels, const at::Tensor& result) {
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, result.scalar_type(), "dropout_add_layer_norm_backward", [&] {
    auto* to = reinterpret_cast<memory_t<scalar_t>*>(result.mutable_data_ptr<scalar_t>());
    cpu::dropout_add_layer_norm::add_up(blocks, count, stride, channels, to);
  });
}

// What the backward kernel reads and writes: rows, numbers of each row, channels.
struct BackwardTensors {
  at::Tensor grad_normed, grad_sum, sum, mean, rstd, weight;
  at::Tensor grad_branch, grad_residual, sums_of_blocks;
};

template <typename branch_t, typename sum_t>
Backward<memory_t<branch_t>, memory_t<sum_t>> raw(
    const BackwardTensors& tensors, const DropoutAddLayerNormBackwardArguments& arguments) {
  using compute = at::opmath_type<sum_t>;
  const auto& needs_grad = arguments.needs_grad;
  const int64_t rows = tensors.sum.size(0), channels = tensors.sum.size(1);
  return {
      .rows = rows,
      .channels = channels,
      .grad_normed = rows_of<sum_t>(tensors.grad_normed),
      .grad_sum = rows_of<sum_t>(tensors.grad_sum),
      .sum = rows_of<sum_t>(tensors.sum),
      .mean = tensors.mean.const_data_ptr<compute>(),
      .rstd = tensors.rstd.const_data_ptr<compute>(),
      .weight = tensors.weight.const_data_ptr<compute>(),
      .settings = settings_of(arguments.p, arguments.seed),
      .grad_branch = result_rows<branch_t>(tensors.grad_branch, channels, needs_grad[0]),
      .grad_residual = result_rows<sum_t>(tensors.grad_residual, channels, needs_grad[1]),
      .needs_weight = needs_grad[2],
      .needs_bias = needs_grad[3],
      .sums = tensors.sums_of_blocks.mutable_data_ptr<compute>()};
}

DropoutAddLayerNormGradients backward_cpu(const DropoutAddLayerNormBackwardArguments& arguments) {
  detail::check_dropout_add_layer_norm_backward_arguments(arguments);
  const auto &sum = arguments.sum, &weight = arguments.weight;
  const auto& needs_grad = arguments.needs_grad;
  detail::check_cpu_activation_type({"dropout_add_layer_norm_backward", "sum", sum});
  const auto type = sum.scalar_type(), parameters = detail::parameter_type(type);
  const auto branch_type = detail::kernel_type_of_branch(arguments.branch_dtype, type);
  auto grad_weight = detail::empty_gradient(needs_grad[2], weight);
  auto grad_bias = detail::empty_gradient(needs_grad[3], weight);
  // One partial sum for each block of rows, added up in order: the same numbers on any number of threads.
  const int64_t channels = sum.size(-1), rows = sum.numel() / channels, block_rows = rows_per_block(channels);
  const int64_t blocks = at::divup(rows, block_rows);
  const int64_t summed_blocks = needs_grad[2] || needs_grad[3] ? blocks : 0;
  const BackwardTensors tensors{
      rows_or_undefined(arguments.grad_normed),
      rows_or_undefined(arguments.grad_sum),
      as_rows(sum),
      arguments.mean.contiguous(),
      arguments.rstd.contiguous(),
      weight.to(parameters).contiguous(),
      detail::empty_gradient(needs_grad[0], sum, branch_type),
      detail::empty_gradient(needs_grad[1], sum),
      at::zeros({summed_blocks, 2, channels}, weight.options().dtype(parameters))};
  dispatch(branch_type, type, [&](auto branch_zero, auto sum_zero) {
    const auto call = raw<decltype(branch_zero), decltype(sum_zero)>(tensors, arguments);
    at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      cpu::dropout_add_layer_norm::backward(call, block_rows, first, last);
    });
    if (needs_grad[2]) add_up(call.sums, summed_blocks, 2 * channels, channels, grad_weight);
    if (needs_grad[3]) add_up(call.sums + channels, summed_blocks, 2 * channels, channels, grad_bias);
  });
  return {tensors.grad_branch.to(arguments.branch_dtype), tensors.grad_residual, grad_weight, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl(
      "dropout_add_layer_norm_with_statistics",
      detail::unpacked<DropoutAddLayerNormWithStatistics, with_statistics_cpu>);
  m.impl("dropout_add_layer_norm_backward", detail::unpacked<DropoutAddLayerNormBackward, backward_cpu>);
}

}  // namespace hyenarec
