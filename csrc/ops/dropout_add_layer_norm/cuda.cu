// dropout_add_layer_norm on CUDA: one launch forward; backward one that writes the gradients of branch and
// residual and sums those of weight and bias by groups of rows, which torch adds up in a fixed order: no
// atomics, deterministic. The seed stays on the GPU.
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "../common/cuda/launch.cuh"
#include "cuda.cuh"
#include "tensors.h"

namespace hyenarec {
namespace {

// Whether vectors of as many channels as 16 bytes of the sum hold lie on their alignment in all of these:
// rows [rows, D], some of them undefined, or parameters [D].
bool aligned(int64_t sum_bytes, std::initializer_list<at::Tensor> tensors) {
  const int64_t vector = 16 / sum_bytes;
  return std::all_of(tensors.begin(), tensors.end(), [&](const at::Tensor& tensor) {
    if (!tensor.defined()) return true;
    const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    const int64_t bytes = std::min<int64_t>(vector * tensor.element_size(), 16);
    return tensor.size(-1) % vector == 0 && (tensor.dim() == 1 || tensor.stride(0) % vector == 0) &&
           address % bytes == 0;
  });
}

// Calls run(branch_t{}, sum_t{}, vector): the types in which the kernel reads branch and sum, and channels at
// a time, 16 bytes of the sum or one.
template <typename Run>
void dispatch(const at::Tensor& branch, const at::Tensor& sum, bool vectors, const Run& run) {
  const auto with_vector = [&](auto branch_zero, auto sum_zero) {
    using Wide = std::integral_constant<int, 16 / sizeof(sum_zero)>;
    vectors ? run(branch_zero, sum_zero, Wide{})
            : run(branch_zero, sum_zero, std::integral_constant<int, 1>{});
  };
  const auto type = sum.scalar_type(), branch_type = branch.scalar_type();
  if (branch_type == at::kHalf && type == at::kFloat) return with_vector(at::Half{}, float{});
  if (branch_type == at::kBFloat16 && type == at::kFloat) return with_vector(at::BFloat16{}, float{});
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, type, "dropout_add_layer_norm", [&] { with_vector(scalar_t{}, scalar_t{}); });
}

Tensors<4> with_statistics_cuda(const DropoutAddLayerNormArguments& arguments) {
  const c10::cuda::CUDAGuard guard(arguments.branch.device());
  const detail::NormForwardTensors tensors(arguments);
  if (tensors.branch.size(0) == 0) return tensors.results();
  const bool vectors =
      aligned(tensors.sum.element_size(), {tensors.branch, tensors.residual, tensors.weight, tensors.bias});
  dispatch(tensors.branch, tensors.sum, vectors, [&](auto branch_zero, auto sum_zero, auto vector) {
    using branch_t = decltype(branch_zero);
    using sum_t = decltype(sum_zero);
    constexpr int kHeld = kNormHeld / vector();
    const auto rows = tensors.call<branch_t, sum_t>();
    launch(
        norm_shape(rows.rows, rows.channels, vector(), kHeld, 1, sizeof(rows.eps)).launch,
        dropout_add_layer_norm_forward<branch_t, sum_t, vector(), kHeld>, rows);
  });
  return tensors.results();
}

Tensors<4> backward_cuda(const DropoutAddLayerNormBackwardArguments& arguments) {
  const c10::cuda::CUDAGuard guard(arguments.sum.device());
  const detail::NormBackwardTensors tensors(arguments);
  const int64_t count = tensors.sum.size(0), channels = tensors.sum.size(1);
  if (count == 0) {
    tensors.grad_weight.zero_();
    tensors.grad_bias.zero_();
  }
  const auto& needs_grad = arguments.needs_grad;
  if (count == 0 || !(needs_grad[0] || needs_grad[1] || tensors.needs_sums)) return tensors.results();

  const bool vectors = aligned(
      tensors.sum.element_size(), {tensors.sum, tensors.grad_normed, tensors.grad_sum, tensors.weight});
  dispatch(tensors.grad_branch, tensors.sum, vectors, [&](auto branch_zero, auto sum_zero, auto vector) {
    using branch_t = decltype(branch_zero);
    using sum_t = decltype(sum_zero);
    constexpr int kHeld = kNormHeld / vector();
    const auto shape = norm_shape(count, channels, vector(), kHeld, 0, sizeof(accumulate_t<sum_t>));
    const auto partial = tensors.partial_sums(shape.groups);
    launch(
        shape.launch, dropout_add_layer_norm_backward<branch_t, sum_t, vector(), kHeld>,
        tensors.call<branch_t, sum_t>(shape.run, partial));
    if (tensors.needs_sums) tensors.write_sums(partial.sum(0, /*keepdim=*/false, at::kDouble));
  });
  return tensors.results();
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CUDA, m) {
  m.impl("dropout_add_layer_norm_with_statistics", detail::checked<with_statistics_cuda>);
  m.impl("dropout_add_layer_norm_backward", detail::checked<backward_cuda>);
}

}  // namespace hyenarec
