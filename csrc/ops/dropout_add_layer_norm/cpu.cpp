// dropout_add_layer_norm on the CPU: blocks of rows shared among torch's threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include "../common/cpu/block_sums.h"
#include "../common/cpu/tensors.h"
#include "cpu.h"
#include "tensors.h"

namespace hyenarec {
namespace {

using cpu::dropout_add_layer_norm::rows_per_block;

// Calls run(branch_t{}, sum_t{}) with the types in which the kernel reads branch and sum.
template <typename Run>
void dispatch(const at::Tensor& branch, const at::Tensor& sum, const Run& run) {
  if (branch.scalar_type() != sum.scalar_type()) return run(simd::BFloat16{}, float{});
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, sum.scalar_type(), "dropout_add_layer_norm", [&] {
    run(memory_t<scalar_t>{}, memory_t<scalar_t>{});
  });
}

Tensors<4> with_statistics_cpu(const DropoutAddLayerNormArguments& arguments) {
  const char* op = "dropout_add_layer_norm";
  detail::check_cpu_activation_type({op, "branch", arguments.branch});
  if (arguments.residual) detail::check_cpu_activation_type({op, "residual", *arguments.residual});
  const detail::NormForwardTensors tensors(arguments);
  dispatch(tensors.branch, tensors.sum, [&](auto branch_zero, auto sum_zero) {
    const auto call = tensors.call<decltype(branch_zero), decltype(sum_zero)>();
    const int64_t blocks = at::divup(call.rows, rows_per_block(call.channels));
    at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      cpu::dropout_add_layer_norm::forward(call, first, last);
    });
  });
  return tensors.results();
}

Tensors<4> backward_cpu(const DropoutAddLayerNormBackwardArguments& arguments) {
  detail::check_cpu_activation_type({"dropout_add_layer_norm_backward", "sum", arguments.sum});
  const detail::NormBackwardTensors tensors(arguments);
  // One partial sum for each block of rows, added up in order: the same numbers on any number of threads.
  const int64_t block_rows = rows_per_block(tensors.sum.size(1));
  const int64_t blocks = at::divup(tensors.sum.size(0), block_rows);
  const auto partial = tensors.partial_sums(blocks);
  dispatch(tensors.grad_branch, tensors.sum, [&](auto branch_zero, auto sum_zero) {
    const auto call = tensors.call<decltype(branch_zero), decltype(sum_zero)>(block_rows, partial);
    at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      cpu::dropout_add_layer_norm::backward(call, first, last);
    });
    tensors.write_sums(sum_over_blocks<typename decltype(call)::T>(partial));
  });
  return tensors.results();
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("dropout_add_layer_norm_with_statistics", detail::checked<with_statistics_cpu>);
  m.impl("dropout_add_layer_norm_backward", detail::checked<backward_cpu>);
}

}  // namespace hyenarec
