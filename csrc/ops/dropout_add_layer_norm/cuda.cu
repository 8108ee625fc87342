// dropout_add_layer_norm on CUDA: one launch forward; backward one that writes the gradients of branch and
// residual and sums those of weight and bias by groups of rows, which torch adds up in a fixed order: no
// atomics, deterministic. The seed stays on the GPU.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "../common/argument_checks.h"
#include "../common/channels_last.h"
#include "../common/cuda/launch.cuh"
#include "arguments.h"
#include "cuda.cuh"

namespace hyenarec {
namespace {

// [.., D] as rows; nullopt: undefined.
at::Tensor rows_or_undefined(const OptionalTensor& tensor) {
  return tensor ? as_rows(*tensor) : at::Tensor();
}

template <typename scalar_t>
const scalar_t* data_or_null(const at::Tensor& rows) {
  return rows.defined() ? rows.const_data_ptr<scalar_t>() : nullptr;
}
int64_t stride_of(const at::Tensor& rows) { return rows.defined() ? rows.stride(0) : 0; }

// Whether vectors of so many channels lie on their alignment in all of these: rows [rows, D], some of them
// undefined, or parameters [D].
bool aligned(int64_t vector, int64_t channels, std::initializer_list<at::Tensor> tensors) {
  return channels % vector == 0 && std::all_of(tensors.begin(), tensors.end(), [&](const at::Tensor& tensor) {
           if (!tensor.defined()) return true;
           const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
           const int64_t bytes = std::min<int64_t>(vector * tensor.element_size(), 16);
           return (tensor.dim() == 1 || tensor.stride(0) % vector == 0) && address % bytes == 0;
         });
}

// Calls run(branch_t{}, sum_t{}, vector): the types in which the kernel reads branch and sum, and channels at
// a time, 16 bytes of the sum or one.
template <typename Run>
void dispatch(at::ScalarType branch, at::ScalarType sum, bool vectors, const Run& run) {
  const auto with_vector = [&](auto branch_zero, auto sum_zero) {
    using Wide = std::integral_constant<int, 16 / sizeof(sum_zero)>;
    vectors ? run(branch_zero, sum_zero, Wide{})
            : run(branch_zero, sum_zero, std::integral_constant<int, 1>{});
  };
  if (branch == at::kHalf && sum == at::kFloat) return with_vector(at::Half{}, float{});
  if (branch == at::kBFloat16 && sum == at::kFloat) return with_vector(at::BFloat16{}, float{});
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, sum, "dropout_add_layer_norm", [&] { with_vector(scalar_t{}, scalar_t{}); });
}

template <typename T>
NormDropout<T> dropout_of(double p, const OptionalTensor& seed) {
  const detail::DropoutLevels levels(p);
  return {seed ? seed->const_data_ptr<int64_t>() : nullptr, levels.dropped, static_cast<T>(levels.scale)};
}

NormAndStatistics with_statistics_cuda(const DropoutAddLayerNormArguments& arguments) {
  detail::check_dropout_add_layer_norm_arguments(arguments);
  const auto& [branch, residual, weight, bias, p, eps, seed] = arguments;
  const c10::cuda::CUDAGuard guard(branch.device());
  const auto type = detail::type_of_sum(branch, residual), parameters = detail::parameter_type(type);
  const auto options = branch.options().dtype(type);
  auto normed = at::empty(branch.sizes(), options), sum = at::empty(branch.sizes(), options);
  auto mean = at::empty(branch.sizes().slice(0, branch.dim() - 1), options.dtype(parameters));
  auto rstd = at::empty(mean.sizes(), mean.options());
  if (branch.numel() == 0) return {normed, sum, mean, rstd};

  const int64_t channels = branch.size(-1), count = branch.numel() / channels;
  const auto branches = as_rows(branch.to(detail::kernel_type_of_branch(branch.scalar_type(), type)));
  const auto residuals = residual ? as_rows(residual->to(type)) : at::Tensor();
  const auto weights = weight.to(parameters).contiguous(), biases = bias.to(parameters).contiguous();
  const bool vectors = aligned(16 / sum.element_size(), channels, {branches, residuals, weights, biases});
  dispatch(branches.scalar_type(), type, vectors, [&](auto branch_zero, auto sum_zero, auto vector) {
    using branch_t = decltype(branch_zero);
    using sum_t = decltype(sum_zero);
    using T = accumulate_t<sum_t>;
    constexpr int kHeld = kNormHeld / vector();
    NormForward<branch_t, sum_t> rows{};
    rows.rows = count;
    rows.channels = channels;
    rows.branch = branches.const_data_ptr<branch_t>();
    rows.branch_stride = branches.stride(0);
    rows.residual = data_or_null<sum_t>(residuals);
    rows.residual_stride = stride_of(residuals);
    rows.weight = weights.const_data_ptr<T>();
    rows.bias = biases.const_data_ptr<T>();
    rows.eps = static_cast<T>(arguments.eps);
    rows.dropout = dropout_of<T>(arguments.p, arguments.seed);
    rows.normed = normed.mutable_data_ptr<sum_t>();
    rows.sum = sum.mutable_data_ptr<sum_t>();
    rows.mean = mean.mutable_data_ptr<T>();
    rows.rstd = rstd.mutable_data_ptr<T>();
    launch(
        norm_shape(count, channels, vector(), kHeld, 1, sizeof(T)).launch,
        dropout_add_layer_norm_forward<branch_t, sum_t, vector(), kHeld>, rows);
  });
  return {normed, sum, mean, rstd};
}

DropoutAddLayerNormGradients backward_cuda(const DropoutAddLayerNormBackwardArguments& arguments) {
  detail::check_dropout_add_layer_norm_backward_arguments(arguments);
  const auto &sum = arguments.sum, &weight = arguments.weight;
  const auto& needs_grad = arguments.needs_grad;
  const c10::cuda::CUDAGuard guard(sum.device());
  const auto type = sum.scalar_type(), parameters = detail::parameter_type(type);
  const auto branch_type = detail::kernel_type_of_branch(arguments.branch_dtype, type);
  auto grad_branch = detail::empty_gradient(needs_grad[0], sum, branch_type);
  auto grad_residual = detail::empty_gradient(needs_grad[1], sum);
  auto grad_weight = detail::empty_gradient(needs_grad[2], weight, parameters);
  auto grad_bias = detail::empty_gradient(needs_grad[3], weight, parameters);
  const auto results = [&] {
    return std::tuple(
        grad_branch.to(arguments.branch_dtype), grad_residual, grad_weight.to(weight.scalar_type()),
        grad_bias.to(weight.scalar_type()));
  };
  const bool needs_sums = needs_grad[2] || needs_grad[3];
  if (sum.numel() == 0) {
    grad_weight.zero_();
    grad_bias.zero_();
    return results();
  }
  if (!(needs_grad[0] || needs_grad[1] || needs_sums)) return results();

  const int64_t channels = sum.size(-1), count = sum.numel() / channels;
  const auto normed_grads = rows_or_undefined(arguments.grad_normed);
  const auto sum_grads = rows_or_undefined(arguments.grad_sum);
  const auto sums = as_rows(sum);
  const auto means = arguments.mean.contiguous(), rstds = arguments.rstd.contiguous();
  const auto weights = weight.to(parameters).contiguous();
  const bool vectors = aligned(16 / sum.element_size(), channels, {normed_grads, sum_grads, sums, weights});
  dispatch(branch_type, type, vectors, [&](auto branch_zero, auto sum_zero, auto vector) {
    using branch_t = decltype(branch_zero);
    using sum_t = decltype(sum_zero);
    using T = accumulate_t<sum_t>;
    constexpr int kHeld = kNormHeld / vector();
    const auto shape = norm_shape(count, channels, vector(), kHeld, 0, sizeof(T));
    const at::Tensor partial = at::zeros({needs_sums ? shape.groups : 0, 2, channels}, weights.options());
    NormBackward<branch_t, sum_t> rows{};
    rows.rows = count;
    rows.channels = channels;
    rows.run = shape.run;
    rows.grad_normed = data_or_null<sum_t>(normed_grads);
    rows.grad_normed_stride = stride_of(normed_grads);
    rows.grad_sum = data_or_null<sum_t>(sum_grads);
    rows.grad_sum_stride = stride_of(sum_grads);
    rows.sum = sums.const_data_ptr<sum_t>();
    rows.sum_stride = sums.stride(0);
    rows.mean = means.const_data_ptr<T>();
    rows.rstd = rstds.const_data_ptr<T>();
    rows.weight = weights.const_data_ptr<T>();
    rows.dropout = dropout_of<T>(arguments.p, arguments.seed);
    rows.grad_branch = needs_grad[0] ? grad_branch.mutable_data_ptr<branch_t>() : nullptr;
    rows.grad_residual = needs_grad[1] ? grad_residual.mutable_data_ptr<sum_t>() : nullptr;
    rows.partial = needs_sums ? partial.mutable_data_ptr<T>() : nullptr;
    launch(shape.launch, dropout_add_layer_norm_backward<branch_t, sum_t, vector(), kHeld>, rows);
    if (!needs_sums) return;
    const auto totals = partial.sum(0, /*keepdim=*/false, at::kDouble);
    if (needs_grad[2]) grad_weight.copy_(totals[0]);
    if (needs_grad[3]) grad_bias.copy_(totals[1]);
  });
  return results();
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CUDA, m) {
  m.impl(
      "dropout_add_layer_norm_with_statistics",
      detail::unpacked<DropoutAddLayerNormWithStatistics, with_statistics_cuda>);
  m.impl("dropout_add_layer_norm_backward", detail::unpacked<DropoutAddLayerNormBackward, backward_cuda>);
}

}  // namespace hyenarec
