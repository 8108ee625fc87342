// short_conv on CUDA: one launch forward; backward one that writes grad_u and sums the parameters' gradients
// by groups of rows, which torch adds up in a fixed order: no atomics, deterministic.
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAGuard.h>

#include "../common/cuda/launch.cuh"
#include "../common/cuda/rows.h"
#include "arguments.h"
#include "cuda.cuh"

namespace hyenarec {
namespace {

// Rows a thread slides over: enough to hide the halo, short enough to fill a GPU.
constexpr int64_t kForwardRun = 16;

template <typename scalar_t>
bool aligned(const Rows& rows, int64_t channels) {
  constexpr int64_t kVector = 16 / sizeof(scalar_t);
  return channels % kVector == 0 && rows.stride % kVector == 0 &&
         reinterpret_cast<uintptr_t>(rows.tensor.const_data_ptr()) % 16 == 0;
}

// Calls run(vector, taps) with integral constants: 16 bytes of channels or one channel, 4 or 8 taps.
template <typename scalar_t, typename Run>
void choose(bool vectors, int64_t width, const Run& run) {
  const auto with_vector = [&](auto vector) {
    width <= 4 ? run(vector, std::integral_constant<int, 4>{})
               : run(vector, std::integral_constant<int, kShortConvMaxWidth>{});
  };
  vectors ? with_vector(std::integral_constant<int, 16 / sizeof(scalar_t)>{})
          : with_vector(std::integral_constant<int, 1>{});
}

at::Tensor short_conv_cuda(const ShortConvArguments& arguments) {
  const auto& [u, weight, bias, offsets] = arguments;
  const c10::cuda::CUDAGuard guard(u.device());
  auto out = at::empty(u.sizes(), u.options());
  if (out.numel() == 0) return out;

  const int64_t channels = u.size(-1), width = weight.size(1);
  const Rows input(u);
  const auto taps = weight.contiguous();
  const auto shifts = bias ? bias->contiguous() : at::Tensor();
  const RowSequences sequences("short_conv", u, offsets);
  const SequenceRows rows{sequences.rows, sequences.length, sequences.offsets_data(), sequences.count};
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, u.scalar_type(), "short_conv", [&] {
    using param_t = accumulate_t<scalar_t>;
    choose<scalar_t>(aligned<scalar_t>(input, channels), width, [&](auto vector, auto tap_count) {
      const auto shape = short_conv_shape(rows.rows, channels, vector(), kForwardRun, 0);
      launch(
          shape.launch, short_conv_forward<scalar_t, vector(), tap_count()>, rows, channels, width,
          shape.channel_tiles, shape.run, input.tensor.const_data_ptr<scalar_t>(), input.stride,
          taps.const_data_ptr<param_t>(), shifts.defined() ? shifts.const_data_ptr<param_t>() : nullptr,
          out.mutable_data_ptr<scalar_t>());
    });
  });
  return out;
}

Tensors<3> short_conv_backward_cuda(const ShortConvBackwardArguments& arguments) {
  const auto& [grad, forward, needs_grad] = arguments;
  const auto& [u, weight, bias, offsets] = forward;
  const c10::cuda::CUDAGuard guard(u.device());
  const int64_t channels = u.size(-1), width = weight.size(1);
  const auto gradients = detail::empty_gradients(forward, needs_grad);
  const bool needs_u = gradients[0].numel() > 0;
  const bool needs_weight = gradients[1].numel() > 0, needs_bias = gradients[2].numel() > 0;
  if (u.numel() == 0) {
    for (int i : {1, 2}) gradients[i].zero_();
    return std::tuple_cat(gradients);
  }
  if (!(needs_u || needs_weight || needs_bias)) return std::tuple_cat(gradients);

  const Rows input(u), output(grad);
  const auto taps = weight.contiguous();
  const RowSequences sequences("short_conv", u, offsets);
  const SequenceRows rows{sequences.rows, sequences.length, sequences.offsets_data(), sequences.count};
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, u.scalar_type(), "short_conv_backward", [&] {
    using param_t = accumulate_t<scalar_t>;
    const bool vectors = aligned<scalar_t>(input, channels) && aligned<scalar_t>(output, channels);
    choose<scalar_t>(vectors, width, [&](auto vector, auto tap_count) {
      const auto shape = short_conv_shape(rows.rows, channels, vector(), 0, sizeof(param_t));
      const at::Tensor partial = at::empty({shape.groups, width + 1, channels}, weight.options());
      launch(
          shape.launch, short_conv_backward<scalar_t, vector(), tap_count()>, rows, channels, width,
          shape.channel_tiles, shape.run, output.tensor.const_data_ptr<scalar_t>(), output.stride,
          input.tensor.const_data_ptr<scalar_t>(), input.stride, taps.const_data_ptr<param_t>(),
          needs_u ? gradients[0].mutable_data_ptr<scalar_t>() : nullptr, partial.mutable_data_ptr<param_t>());
      if (!(needs_weight || needs_bias)) return;
      const auto sums = partial.sum(0, /*keepdim=*/false, at::kDouble);
      if (needs_weight) gradients[1].copy_(sums.narrow(0, 0, width).t());
      if (needs_bias) gradients[2].copy_(sums[width]);
    });
  });
  return std::tuple_cat(gradients);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CUDA, m) {
  m.impl("short_conv", detail::checked<short_conv_cuda>);
  m.impl("short_conv_backward", detail::checked<short_conv_backward_cuda>);
}

}  // namespace hyenarec
