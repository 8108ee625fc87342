// dropout_add_layer_norm on CUDA: one launch forward; backward one that writes the gradients of branch and
// residual and sums those of weight and bias by groups of rows, which torch adds up in a fixed order: no
// atomics, deterministic. The seed stays on the GPU.
#include <ATen/Dispatch.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "../common/cuda/launch.cuh"
#include "cuda.cuh"
#include "tensors.h"

namespace hyenarec {
namespace {

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

Tensors<4> with_statistics_cuda(const DropoutAddLayerNormArguments& arguments) {
  const c10::cuda::CUDAGuard guard(arguments.branch.device());
  const detail::NormForwardTensors tensors(arguments);
  const int64_t channels = tensors.channels, count = tensors.rows;
  if (count == 0) return tensors.results();
  const bool vectors = aligned(
      16 / tensors.sum.element_size(), channels,
      {tensors.branch, tensors.residual, tensors.weight, tensors.bias});
  const auto branch_type = tensors.branch.scalar_type();
  dispatch(branch_type, tensors.type, vectors, [&](auto branch_zero, auto sum_zero, auto vector) {
    using branch_t = decltype(branch_zero);
    using sum_t = decltype(sum_zero);
    using T = accumulate_t<sum_t>;
    constexpr int kHeld = kNormHeld / vector();
    NormForward<branch_t, sum_t> rows{};
    rows.rows = count;
    rows.channels = channels;
    rows.branch = tensors.branch.const_data_ptr<branch_t>();
    rows.branch_stride = tensors.branch.stride(0);
    rows.residual = data_or_null<sum_t>(tensors.residual);
    rows.residual_stride = stride_of(tensors.residual);
    rows.weight = tensors.weight.const_data_ptr<T>();
    rows.bias = tensors.bias.const_data_ptr<T>();
    rows.eps = static_cast<T>(arguments.eps);
    rows.dropout = dropout_of<T>(arguments.p, arguments.seed);
    rows.normed = tensors.normed.mutable_data_ptr<sum_t>();
    rows.sum = tensors.sum.mutable_data_ptr<sum_t>();
    rows.mean = tensors.mean.mutable_data_ptr<T>();
    rows.rstd = tensors.rstd.mutable_data_ptr<T>();
    launch(
        norm_shape(count, channels, vector(), kHeld, 1, sizeof(T)).launch,
        dropout_add_layer_norm_forward<branch_t, sum_t, vector(), kHeld>, rows);
  });
  return tensors.results();
}

Tensors<4> backward_cuda(const DropoutAddLayerNormBackwardArguments& arguments) {
  const c10::cuda::CUDAGuard guard(arguments.sum.device());
  const detail::NormBackwardTensors tensors(arguments);
  const auto& needs_grad = arguments.needs_grad;
  const bool needs_sums = needs_grad[2] || needs_grad[3];
  if (tensors.rows == 0) {
    tensors.grad_weight.zero_();
    tensors.grad_bias.zero_();
    return tensors.results(arguments);
  }
  if (!(needs_grad[0] || needs_grad[1] || needs_sums)) return tensors.results(arguments);

  const int64_t channels = tensors.channels, count = tensors.rows;
  const bool vectors = aligned(
      16 / tensors.sum.element_size(), channels,
      {tensors.grad_normed, tensors.grad_sum, tensors.sum, tensors.weight});
  const auto branch_type = tensors.grad_branch.scalar_type();
  dispatch(branch_type, tensors.type, vectors, [&](auto branch_zero, auto sum_zero, auto vector) {
    using branch_t = decltype(branch_zero);
    using sum_t = decltype(sum_zero);
    using T = accumulate_t<sum_t>;
    constexpr int kHeld = kNormHeld / vector();
    const auto shape = norm_shape(count, channels, vector(), kHeld, 0, sizeof(T));
    const at::Tensor partial =
        at::zeros({needs_sums ? shape.groups : 0, 2, channels}, tensors.weight.options());
    NormBackward<branch_t, sum_t> rows{};
    rows.rows = count;
    rows.channels = channels;
    rows.run = shape.run;
    rows.grad_normed = data_or_null<sum_t>(tensors.grad_normed);
    rows.grad_normed_stride = stride_of(tensors.grad_normed);
    rows.grad_sum = data_or_null<sum_t>(tensors.grad_sum);
    rows.grad_sum_stride = stride_of(tensors.grad_sum);
    rows.sum = tensors.sum.const_data_ptr<sum_t>();
    rows.sum_stride = tensors.sum.stride(0);
    rows.mean = tensors.mean.const_data_ptr<T>();
    rows.rstd = tensors.rstd.const_data_ptr<T>();
    rows.weight = tensors.weight.const_data_ptr<T>();
    rows.dropout = dropout_of<T>(arguments.p, arguments.seed);
    rows.grad_branch = needs_grad[0] ? tensors.grad_branch.mutable_data_ptr<branch_t>() : nullptr;
    rows.grad_residual = needs_grad[1] ? tensors.grad_residual.mutable_data_ptr<sum_t>() : nullptr;
    rows.partial = needs_sums ? partial.mutable_data_ptr<T>() : nullptr;
    launch(shape.launch, dropout_add_layer_norm_backward<branch_t, sum_t, vector(), kHeld>, rows);
    if (!needs_sums) return;
    const auto totals = partial.sum(0, /*keepdim=*/false, at::kDouble);
    if (needs_grad[2]) tensors.grad_weight.copy_(totals[0]);
    if (needs_grad[3]) tensors.grad_bias.copy_(totals[1]);
  });
  return tensors.results(arguments);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CUDA, m) {
  m.impl("dropout_add_layer_norm_with_statistics", detail::checked<with_statistics_cuda>);
  m.impl("dropout_add_layer_norm_backward", detail::checked<backward_cuda>);
}

}  // namespace hyenarec
