// The tensors of a call as the kernels of every device read and write them: rows of channels, in the kernels'
// types. call() is of branch_t and sum_t, the types in which a kernel sees branch and sum in memory.
#pragma once

#include <ATen/ops/zeros.h>

#include <cmath>

#include "../common/channels_last.h"
#include "../common/raw_data.h"
#include "arguments.h"
#include "call.h"
#include "philox.h"

namespace hyenarec::detail {

// The type in which the kernels read the branch, and write its gradient: 16 bits stay 16 bits beside a
// float32 sum, all else is converted to the sum's type.
inline at::ScalarType kernel_type_of_branch(at::ScalarType branch, at::ScalarType sum) {
  return sum == at::kFloat && c10::isReducedFloatingType(branch) ? branch : sum;
}

// [.., D] as rows; nullopt: undefined.
inline at::Tensor rows_or_undefined(const OptionalTensor& tensor) {
  return tensor ? as_rows(*tensor) : at::Tensor();
}

template <typename scalar_t>
NormRows<scalar_t> norm_rows(const at::Tensor& rows) {
  return {data_or_null<const scalar_t>(rows), rows.defined() ? rows.stride(0) : 0};
}
template <typename T>
NormDropout<T> dropout_of(double p, const OptionalTensor& seed) {
  const auto dropped = static_cast<uint32_t>(std::nearbyint(p * kNumLevels));
  const double scale = dropped == kNumLevels ? 0 : kNumLevels / (kNumLevels - static_cast<double>(dropped));
  return {seed ? data_or_null<const int64_t>(*seed) : nullptr, dropped, static_cast<T>(scale)};
}

struct NormForwardTensors {
  const DropoutAddLayerNormArguments& of;
  const at::ScalarType type, parameter_type;  // of the sum; of parameters and statistics
  const at::Tensor branch, residual, weight, bias;
  const at::Tensor normed, sum, mean, rstd;  // the results, not filled in yet

  explicit NormForwardTensors(const DropoutAddLayerNormArguments& arguments)
      : of(arguments),
        type(type_of_sum(of.branch, of.residual)),
        parameter_type(detail::parameter_type(type)),
        branch(as_rows(of.branch.to(kernel_type_of_branch(of.branch.scalar_type(), type)))),
        residual(of.residual ? as_rows(of.residual->to(type)) : at::Tensor()),
        weight(of.weight.to(parameter_type).contiguous()),
        bias(of.bias.to(parameter_type).contiguous()),
        normed(at::empty(of.branch.sizes(), branch.options().dtype(type))),
        sum(at::empty(normed.sizes(), normed.options())),
        mean(at::empty(sum.sizes().slice(0, sum.dim() - 1), sum.options().dtype(parameter_type))),
        rstd(at::empty(mean.sizes(), mean.options())) {}

  template <typename branch_t, typename sum_t>
  NormForward<branch_t, sum_t> call() const {
    using T = typename NormForward<branch_t, sum_t>::T;
    return {
        .rows = branch.size(0),
        .channels = branch.size(1),
        .branch = norm_rows<branch_t>(branch),
        .residual = norm_rows<sum_t>(residual),
        .weight = data_or_null<const T>(weight),
        .bias = data_or_null<const T>(bias),
        .eps = static_cast<T>(of.eps),
        .dropout = dropout_of<T>(of.p, of.seed),
        .normed = data_or_null<sum_t>(normed),
        .sum = data_or_null<sum_t>(sum),
        .mean = data_or_null<T>(mean),
        .rstd = data_or_null<T>(rstd)};
  }
  Tensors<4> results() const { return {normed, sum, mean, rstd}; }
};

struct NormBackwardTensors {
  const DropoutAddLayerNormBackwardArguments& of;
  const at::ScalarType parameter_type;
  const bool needs_sums;  // over rows
  const at::Tensor grad_normed, grad_sum, sum, mean, rstd, weight;
  const at::Tensor grad_branch, grad_residual, grad_weight, grad_bias;  // the results; [0]: not needed

  explicit NormBackwardTensors(const DropoutAddLayerNormBackwardArguments& arguments)
      : of(arguments),
        parameter_type(detail::parameter_type(of.sum.scalar_type())),
        needs_sums(of.needs_grad[2] || of.needs_grad[3]),
        grad_normed(rows_or_undefined(of.grad_normed)),
        grad_sum(rows_or_undefined(of.grad_sum)),
        sum(as_rows(of.sum)),
        mean(of.mean.contiguous()),
        rstd(of.rstd.contiguous()),
        weight(of.weight.to(parameter_type).contiguous()),
        grad_branch(empty_gradient(
            of.needs_grad[0], of.sum, kernel_type_of_branch(of.branch_dtype, of.sum.scalar_type()))),
        grad_residual(empty_gradient(of.needs_grad[1], of.sum)),
        grad_weight(empty_gradient(of.needs_grad[2], of.weight, parameter_type)),
        grad_bias(empty_gradient(of.needs_grad[3], of.weight, parameter_type)) {}

  // Room for the parts of so many blocks: [blocks, 2, D], or [0, 2, D] if they are not needed.
  at::Tensor partial_sums(int64_t blocks) const {
    return at::zeros({needs_sums ? blocks : 0, 2, sum.size(1)}, weight.options());
  }
  // Of blocks with these parts, of `run` rows each.
  template <typename branch_t, typename sum_t>
  NormBackward<branch_t, sum_t> call(int64_t run, const at::Tensor& partial) const {
    using T = typename NormBackward<branch_t, sum_t>::T;
    return {
        .rows = sum.size(0),
        .channels = sum.size(1),
        .run = run,
        .grad_normed = norm_rows<sum_t>(grad_normed),
        .grad_sum = norm_rows<sum_t>(grad_sum),
        .sum = norm_rows<sum_t>(sum),
        .mean = data_or_null<const T>(mean),
        .rstd = data_or_null<const T>(rstd),
        .weight = data_or_null<const T>(weight),
        .dropout = dropout_of<T>(of.p, of.seed),
        .grad_branch = data_or_null<branch_t>(grad_branch),
        .grad_residual = data_or_null<sum_t>(grad_residual),
        .partial = data_or_null<T>(partial)};
  }
  // From the sums [2, D] of these parts, in double.
  void write_sums(const at::Tensor& sums) const {
    if (of.needs_grad[2]) grad_weight.copy_(sums[0]);
    if (of.needs_grad[3]) grad_bias.copy_(sums[1]);
  }
  Tensors<4> results() const {
    const auto weight_type = of.weight.scalar_type();
    return {
        grad_branch.to(of.branch_dtype), grad_residual, grad_weight.to(weight_type),
        grad_bias.to(weight_type)};
  }
};

}  // namespace hyenarec::detail
