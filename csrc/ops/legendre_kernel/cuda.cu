// legendre_kernel on CUDA: one launch forward, two backward (moments by segments of lags, then their sum in a
// fixed order), no atomics: deterministic.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "../common/cuda/launch.cuh"
#include "arguments.h"
#include "cuda.cuh"

namespace hyenarec {
namespace {

at::Tensor legendre_kernel_cuda(
    const at::Tensor& coeffs, const at::Tensor& decay, int64_t horizon, int64_t length) {
  detail::check_legendre_kernel_arguments(coeffs, decay, horizon, length);
  const c10::cuda::CUDAGuard guard(coeffs.device());
  const int64_t channels = coeffs.size(0), degrees = coeffs.size(1);
  auto kernel = at::empty({channels, length}, coeffs.options());
  if (kernel.numel() == 0) return kernel;

  const auto rows = coeffs.contiguous();
  const auto rates = decay.contiguous();
  AT_DISPATCH_FLOATING_TYPES(coeffs.scalar_type(), "legendre_kernel", [&] {
    launch(
        legendre_kernel_forward_shape<scalar_t>(channels, length), legendre_kernel_forward<scalar_t>,
        channels, degrees, horizon, length, rows.const_data_ptr<scalar_t>(), rates.const_data_ptr<scalar_t>(),
        kernel.mutable_data_ptr<scalar_t>());
  });
  return kernel;
}

std::tuple<at::Tensor, at::Tensor> legendre_kernel_backward_cuda(
    const at::Tensor& grad, const at::Tensor& coeffs, const at::Tensor& decay, int64_t horizon) {
  detail::check_legendre_kernel_backward_arguments(grad, coeffs, decay, horizon);
  const c10::cuda::CUDAGuard guard(coeffs.device());
  const int64_t channels = coeffs.size(0), degrees = coeffs.size(1), length = grad.size(1);
  if (coeffs.numel() == 0 || length == 0)
    return {at::zeros({channels, degrees}, coeffs.options()), at::zeros({channels}, decay.options())};

  const auto grads = grad.contiguous();
  const auto rows = coeffs.contiguous();
  const auto rates = decay.contiguous();
  auto grad_coeffs = at::empty({channels, degrees}, coeffs.options());
  auto grad_decay = at::empty({channels}, decay.options());
  AT_DISPATCH_FLOATING_TYPES(coeffs.scalar_type(), "legendre_kernel_backward", [&] {
    const auto shape = legendre_kernel_backward_shape<scalar_t>(channels, degrees, length);
    auto moments = at::empty({shape.segments, 2, channels, degrees}, coeffs.options().dtype(at::kDouble));
    launch(
        shape.launch, legendre_kernel_backward<scalar_t>, channels, degrees, horizon, length,
        shape.degree_tiles, shape.tile_degrees, shape.segments, shape.segment_lags,
        grads.const_data_ptr<scalar_t>(), rates.const_data_ptr<scalar_t>(),
        moments.mutable_data_ptr<double>());
    launch(
        legendre_kernel_finish_shape(channels), legendre_kernel_backward_finish<scalar_t>, channels, degrees,
        shape.segments, moments.const_data_ptr<double>(), rows.const_data_ptr<scalar_t>(),
        grad_coeffs.mutable_data_ptr<scalar_t>(), grad_decay.mutable_data_ptr<scalar_t>());
  });
  return {grad_coeffs, grad_decay};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, CUDA, m) {
  m.impl("legendre_kernel", hyenarec::legendre_kernel_cuda);
  m.impl("legendre_kernel_backward", hyenarec::legendre_kernel_backward_cuda);
}
