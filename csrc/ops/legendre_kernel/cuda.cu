// legendre_kernel on CUDA: one launch forward, two backward (moments by segments of lags, then their sum in a
// fixed order), no atomics: deterministic.
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAGuard.h>

#include "../common/cuda/launch.cuh"
#include "arguments.h"
#include "cuda.cuh"

namespace hyenarec {
namespace {

at::Tensor legendre_kernel_cuda(const LegendreKernelArguments& arguments) {
  const c10::cuda::CUDAGuard guard(arguments.coeffs.device());
  const auto rows = arguments.coeffs.contiguous(), rates = arguments.decay.contiguous();
  const int64_t channels = rows.size(0), degrees = rows.size(1);
  const int64_t horizon = arguments.horizon.expect_int(), length = arguments.length.expect_int();
  auto kernel = at::empty({channels, length}, rows.options());
  if (kernel.numel() == 0) return kernel;
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "legendre_kernel", [&] {
    launch(
        legendre_kernel_forward_shape<scalar_t>(channels, length), legendre_kernel_forward<scalar_t>,
        channels, degrees, horizon, length, rows.const_data_ptr<scalar_t>(), rates.const_data_ptr<scalar_t>(),
        kernel.mutable_data_ptr<scalar_t>());
  });
  return kernel;
}

// The kernels compute both gradients together.
Tensors<2> legendre_kernel_backward_cuda(const LegendreKernelBackwardArguments& arguments) {
  const auto& [grad, forward, needs_grad] = arguments;
  const c10::cuda::CUDAGuard guard(grad.device());
  const auto grads = grad.contiguous(), rows = forward.coeffs.contiguous();
  const auto rates = forward.decay.contiguous();
  const int64_t channels = rows.size(0), degrees = rows.size(1), length = grads.size(1);
  const int64_t horizon = forward.horizon.expect_int();
  const auto both = detail::empty_gradients<2>(forward, {true, true});
  if (rows.numel() == 0 || length == 0) {
    for (const auto& gradient : both) gradient.zero_();
  } else {
    AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "legendre_kernel_backward", [&] {
      const auto shape = legendre_kernel_backward_shape<scalar_t>(channels, degrees, length);
      auto moments = at::empty({shape.segments, 2, channels, degrees}, rows.options().dtype(at::kDouble));
      launch(
          shape.launch, legendre_kernel_moments<scalar_t>, channels, degrees, horizon, length,
          shape.degree_tiles, shape.tile_degrees, shape.segments, shape.segment_lags,
          grads.const_data_ptr<scalar_t>(), rates.const_data_ptr<scalar_t>(),
          moments.mutable_data_ptr<double>());
      launch(
          legendre_kernel_finish_shape(channels), legendre_kernel_backward_finish<scalar_t>, channels,
          degrees, shape.segments, moments.const_data_ptr<double>(), rows.const_data_ptr<scalar_t>(),
          both[0].mutable_data_ptr<scalar_t>(), both[1].mutable_data_ptr<scalar_t>());
    });
  }
  const auto none = at::empty({0}, rows.options());
  return {needs_grad[0] ? both[0] : none, needs_grad[1] ? both[1] : none};
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CUDA, m) {
  m.impl("legendre_kernel", detail::checked<legendre_kernel_cuda>);
  m.impl("legendre_kernel_backward", detail::checked<legendre_kernel_backward_cuda>);
}

}  // namespace hyenarec
