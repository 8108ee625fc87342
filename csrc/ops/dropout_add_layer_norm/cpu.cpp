// dropout_add_layer_norm on the CPU: blocks of rows shared among torch's threads.
#include <ATen/Dispatch.h>
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

DropoutAddLayerNormGradients backward_cpu(const DropoutAddLayerNormBackwardArguments& arguments) {
  detail::check_dropout_add_layer_norm_backward_arguments(arguments);
  const auto& sum = arguments.sum;
  const auto& needs_grad = arguments.needs_grad;
  detail::check_cpu_activation_type({"dropout_add_layer_norm_backward", "sum", sum});
  const auto type = sum.scalar_type(), parameters = detail::parameter_type(type);
  const auto branch_type = detail::kernel_type_of_branch(arguments.branch_dtype, type);
  auto grad_branch = detail::empty_gradient(needs_grad[0], sum, branch_type);
  auto grad_residual = detail::empty_gradient(needs_grad[1], sum);
  auto grad_weight = detail::empty_gradient(needs_grad[2], arguments.weight);
  auto grad_bias = detail::empty_gradient(needs_grad[3], arguments.weight);

  const auto normed_grads = rows_or_undefined(arguments.grad_normed);
  const auto sum_grads = rows_or_undefined(arguments.grad_sum);
  const auto sums = as_rows(sum);
  const auto means = arguments.mean.contiguous(), rstds = arguments.rstd.contiguous();
  const auto weights = arguments.weight.to(parameters).contiguous();
  // One partial sum for each block of rows, added up in order: the same numbers on any number of threads.
  const int64_t channels = sum.size(-1), rows = sum.numel() / channels, block_rows = rows_per_block(channels);
  const int64_t all_blocks = at::divup(rows, block_rows);
  const int64_t summed_blocks = needs_grad[2] || needs_grad[3] ? all_blocks : 0;
  const auto partial = at::zeros({summed_blocks, 2, channels}, weights.options());
  const auto settings = settings_of(arguments.p, arguments.seed);
  dispatch(branch_type, type, [&](auto branch_zero, auto sum_zero) {
    using branch_t = decltype(branch_zero);
    using sum_t = decltype(sum_zero);
    using call_t = Backward<memory_t<branch_t>, memory_t<sum_t>>;
    using compute = typename call_t::compute;
    auto* sums_of_blocks = partial.mutable_data_ptr<compute>();
    const call_t call{
        .rows = rows,
        .channels = channels,
        .grad_normed = rows_of<sum_t>(normed_grads),
        .grad_sum = rows_of<sum_t>(sum_grads),
        .sum = rows_of<sum_t>(sums),
        .mean = means.const_data_ptr<compute>(),
        .rstd = rstds.const_data_ptr<compute>(),
        .weight = weights.const_data_ptr<compute>(),
        .settings = settings,
        .grad_branch = result_rows<branch_t>(grad_branch, channels, needs_grad[0]),
        .grad_residual = result_rows<sum_t>(grad_residual, channels, needs_grad[1]),
        .needs_weight = needs_grad[2],
        .needs_bias = needs_grad[3],
        .sums = sums_of_blocks};
    at::parallel_for(0, all_blocks, 1, [&](int64_t first, int64_t last) {
      cpu::dropout_add_layer_norm::backward(call, block_rows, first, last);
    });
    if (needs_grad[2]) add_up(sums_of_blocks, summed_blocks, 2 * channels, channels, grad_weight);
    if (needs_grad[3]) add_up(sums_of_blocks + channels, summed_blocks, 2 * channels, channels, grad_bias);
  });
  return {grad_branch.to(arguments.branch_dtype), grad_residual, grad_weight, grad_bias};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  using namespace hyenarec;
  using hyenarec::detail::unpacked;
  m.impl(
      "dropout_add_layer_norm_with_statistics",
      unpacked<DropoutAddLayerNormWithStatistics, with_statistics_cpu>);
  m.impl("dropout_add_layer_norm_backward", unpacked<DropoutAddLayerNormBackward, backward_cpu>);
}
