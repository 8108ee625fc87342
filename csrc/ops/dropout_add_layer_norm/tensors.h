// The tensors of a call as the kernels of every device read and write them: rows of channels, in the kernels'
// types.
#pragma once

#include "../common/channels_last.h"
#include "arguments.h"

namespace hyenarec::detail {

// [.., D] as rows; nullopt: undefined.
inline at::Tensor rows_or_undefined(const OptionalTensor& tensor) {
  return tensor ? as_rows(*tensor) : at::Tensor();
}

struct NormForwardTensors {
  const at::ScalarType type, parameter_type;  // of the sum; of parameters and statistics
  const int64_t channels, rows;
  const at::Tensor branch, residual, weight, bias;
  const at::Tensor normed, sum, mean, rstd;  // the results, not filled in yet

  explicit NormForwardTensors(const DropoutAddLayerNormArguments& of)
      : type(type_of_sum(of.branch, of.residual)),
        parameter_type(detail::parameter_type(type)),
        channels(of.branch.size(-1)),
        rows(of.branch.numel() / channels),
        branch(as_rows(of.branch.to(kernel_type_of_branch(of.branch.scalar_type(), type)))),
        residual(of.residual ? as_rows(of.residual->to(type)) : at::Tensor()),
        weight(of.weight.to(parameter_type).contiguous()),
        bias(of.bias.to(parameter_type).contiguous()),
        normed(at::empty(of.branch.sizes(), branch.options().dtype(type))),
        sum(at::empty(normed.sizes(), normed.options())),
        mean(at::empty(sum.sizes().slice(0, sum.dim() - 1), sum.options().dtype(parameter_type))),
        rstd(at::empty(mean.sizes(), mean.options())) {}

  Tensors<4> results() const { return {normed, sum, mean, rstd}; }
};

struct NormBackwardTensors {
  const at::ScalarType type, parameter_type;
  const int64_t channels, rows;
  const at::Tensor grad_normed, grad_sum, sum, mean, rstd, weight;
  const at::Tensor grad_branch, grad_residual, grad_weight, grad_bias;  // the results; [0]: not needed

  explicit NormBackwardTensors(const DropoutAddLayerNormBackwardArguments& of)
      : type(of.sum.scalar_type()),
        parameter_type(detail::parameter_type(type)),
        channels(of.sum.size(-1)),
        rows(of.sum.numel() / channels),
        grad_normed(rows_or_undefined(of.grad_normed)),
        grad_sum(rows_or_undefined(of.grad_sum)),
        sum(as_rows(of.sum)),
        mean(of.mean.contiguous()),
        rstd(of.rstd.contiguous()),
        weight(of.weight.to(parameter_type).contiguous()),
        grad_branch(empty_gradient(of.needs_grad[0], of.sum, kernel_type_of_branch(of.branch_dtype, type))),
        grad_residual(empty_gradient(of.needs_grad[1], of.sum)),
        grad_weight(empty_gradient(of.needs_grad[2], of.weight, parameter_type)),
        grad_bias(empty_gradient(of.needs_grad[3], of.weight, parameter_type)) {}

  Tensors<4> results(const DropoutAddLayerNormBackwardArguments& of) const {
    const auto weight_type = of.weight.scalar_type();
    return {
        grad_branch.to(of.branch_dtype), grad_residual, grad_weight.to(weight_type),
        grad_bias.to(weight_type)};
  }
};

}  // namespace hyenarec::detail
