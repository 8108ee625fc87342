// legendre_kernel on the CPU: channels shared among torch's threads.
#include "cpu.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include "../common/raw_data.h"
#include "arguments.h"

namespace hyenarec {
namespace {

using cpu::legendre_kernel::kChannelGrain, cpu::legendre_kernel::Parameters;

at::Tensor legendre_kernel_cpu(const LegendreKernelArguments& arguments) {
  const auto& [coeffs, decay, horizon, length] = arguments;
  detail::check_decay_values("legendre_kernel", decay);
  const auto rows = coeffs.contiguous(), rates = decay.contiguous();
  auto out = at::empty({coeffs.size(0), length.expect_int()}, coeffs.options());
  AT_DISPATCH_FLOATING_TYPES(coeffs.scalar_type(), "legendre_kernel", [&] {
    const Parameters<scalar_t> parameters{
        rows.const_data_ptr<scalar_t>(), rates.const_data_ptr<scalar_t>(), rows.size(1),
        arguments.horizon.expect_int(), out.size(1)};
    auto* out_data = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, rows.size(0), kChannelGrain, [&](int64_t first, int64_t last) {
      cpu::legendre_kernel::forward(parameters, first, last, out_data);
    });
  });
  return out;
}

Tensors<2> legendre_kernel_backward_cpu(const LegendreKernelBackwardArguments& arguments) {
  const auto& [coeffs, decay, horizon, length] = arguments.forward;
  detail::check_decay_values("legendre_kernel_backward", decay);
  const auto grads = arguments.grad.contiguous(), rows = coeffs.contiguous(), rates = decay.contiguous();
  const auto gradients = detail::empty_gradients(arguments.forward, arguments.needs_grad);
  AT_DISPATCH_FLOATING_TYPES(coeffs.scalar_type(), "legendre_kernel_backward", [&] {
    const Parameters<scalar_t> parameters{
        rows.const_data_ptr<scalar_t>(), rates.const_data_ptr<scalar_t>(), rows.size(1),
        arguments.forward.horizon.expect_int(), grads.size(1)};
    const auto* grad_data = grads.const_data_ptr<scalar_t>();
    auto* coeffs_grad = data_or_null<scalar_t>(gradients[0]);
    auto* decay_grad = data_or_null<scalar_t>(gradients[1]);
    at::parallel_for(0, rows.size(0), kChannelGrain, [&](int64_t first, int64_t last) {
      cpu::legendre_kernel::backward(grad_data, parameters, first, last, coeffs_grad, decay_grad);
    });
  });
  return std::tuple_cat(gradients);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("legendre_kernel", detail::checked<legendre_kernel_cpu>);
  m.impl("legendre_kernel_backward", detail::checked<legendre_kernel_backward_cpu>);
}

}  // namespace hyenarec
