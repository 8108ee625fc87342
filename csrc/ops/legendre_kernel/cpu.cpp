// legendre_kernel on the CPU: channels shared among torch's threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../common/argument_checks.h"
#include "arguments.h"
#include "cpu.h"

namespace hyenarec {
namespace {

using cpu::legendre_kernel::kChannelGrain, cpu::legendre_kernel::Parameters;

at::Tensor legendre_kernel_cpu(
    const at::Tensor& coeffs, const at::Tensor& decay, int64_t horizon, int64_t length) {
  detail::check_legendre_kernel_arguments(coeffs, decay, horizon, length);
  detail::check_decay_values("legendre_kernel", decay);
  const auto rows = coeffs.contiguous(), rates = decay.contiguous();
  auto out = at::empty({coeffs.size(0), length}, coeffs.options());
  AT_DISPATCH_FLOATING_TYPES(coeffs.scalar_type(), "legendre_kernel", [&] {
    const Parameters<scalar_t> parameters{
        rows.const_data_ptr<scalar_t>(), rates.const_data_ptr<scalar_t>(), coeffs.size(1), horizon, length};
    auto* out_data = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, coeffs.size(0), kChannelGrain, [&](int64_t first, int64_t last) {
      cpu::legendre_kernel::forward(parameters, first, last, out_data);
    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> legendre_kernel_backward_cpu(
    const at::Tensor& grad, const at::Tensor& coeffs, const at::Tensor& decay, int64_t horizon) {
  detail::check_legendre_kernel_backward_arguments(grad, coeffs, decay, horizon);
  detail::check_decay_values("legendre_kernel_backward", decay);
  const auto grads = grad.contiguous(), rows = coeffs.contiguous(), rates = decay.contiguous();
  auto coeffs_grad = at::empty(coeffs.sizes(), coeffs.options());
  auto decay_grad = at::empty(decay.sizes(), decay.options());
  AT_DISPATCH_FLOATING_TYPES(coeffs.scalar_type(), "legendre_kernel_backward", [&] {
    const Parameters<scalar_t> parameters{
        rows.const_data_ptr<scalar_t>(), rates.const_data_ptr<scalar_t>(), coeffs.size(1), horizon,
        grad.size(1)};
    const auto* grad_data = grads.const_data_ptr<scalar_t>();
    auto* coeffs_grad_data = coeffs_grad.mutable_data_ptr<scalar_t>();
    auto* decay_grad_data = decay_grad.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, coeffs.size(0), kChannelGrain, [&](int64_t first, int64_t last) {
      cpu::legendre_kernel::backward(grad_data, parameters, first, last, coeffs_grad_data, decay_grad_data);
    });
  });
  return {coeffs_grad, decay_grad};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("legendre_kernel", hyenarec::legendre_kernel_cpu);
  m.impl("legendre_kernel_backward", hyenarec::legendre_kernel_backward_cpu);
}
