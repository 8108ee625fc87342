// legendre_conv on CUDA: the launches of ../legendre_scan/cuda/scan.cuh around the LegendreConvIO of
// cuda.cuh.
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAGuard.h>

#include "../legendre_scan/cuda/scan.cuh"
#include "arguments.h"
#include "cuda.cuh"

namespace hyenarec {
namespace {

// What both directions read.
struct Inputs {
  OptionalRows u, pre_gate, post_gate;

  explicit Inputs(const LegendreConvArguments& arguments)
      : u(arguments.u), pre_gate(arguments.pre_gate), post_gate(arguments.post_gate) {}

  template <typename scalar_t>
  LegendreConvIO<scalar_t> io() const {
    LegendreConvIO<scalar_t> io{};
    io.u = u.data<scalar_t>();
    io.pre = pre_gate.data<scalar_t>();
    io.post = post_gate.data<scalar_t>();
    return io;
  }
};

at::Tensor legendre_conv_cuda(const LegendreConvArguments& arguments) {
  constexpr const char* op = "legendre_conv";
  const at::Tensor& u = arguments.u;
  const c10::cuda::CUDAGuard guard(u.device());
  auto out = at::empty(u.sizes(), u.options());
  if (out.numel() == 0) return out;

  const RowSequences sequences(op, u, arguments.offsets);
  const Inputs inputs(arguments);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, u.scalar_type(), op, [&] {
    ScanCall<accumulate_t<scalar_t>> call(op, sequences, arguments);
    auto io = inputs.io<scalar_t>();
    io.out = result_rows<scalar_t>(out);
    call.forward(io);
  });
  return out;
}

Tensors<6> legendre_conv_backward_cuda(const LegendreConvBackwardArguments& arguments) {
  constexpr const char* op = "legendre_conv_backward";
  const auto& [grad, forward, needs_grad, states] = arguments;
  const at::Tensor& u = forward.u;
  const c10::cuda::CUDAGuard guard(u.device());
  const auto gradients = detail::empty_gradients(forward, needs_grad);
  const auto& [grad_u, grad_coeffs, grad_decay, grad_skip, grad_pre, grad_post] = gradients;
  if (u.numel() == 0) {
    for (const auto& parameter : {grad_coeffs, grad_decay, grad_skip}) parameter.zero_();
    return std::tuple_cat(gradients);
  }
  const GradientMask wanted{
      grad_u.numel() + grad_pre.numel() > 0, grad_post.numel() > 0,
      grad_coeffs.numel() + grad_decay.numel() + grad_skip.numel() > 0};
  if (!wanted.any()) return std::tuple_cat(gradients);

  const RowSequences sequences(op, u, forward.offsets);
  const Inputs inputs(forward);
  const OptionalRows output(grad);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, u.scalar_type(), op, [&] {
    ScanCall<accumulate_t<scalar_t>> call(op, sequences, forward);
    auto io = inputs.io<scalar_t>();
    io.grad = output.data<scalar_t>();
    io.grad_u = result_rows<scalar_t>(gradients[0]);
    io.grad_pre = result_rows<scalar_t>(gradients[4]);
    io.grad_post = result_rows<scalar_t>(gradients[5]);
    call.backward(io, wanted, {gradients[1], gradients[2], gradients[3], {}});
  });
  return std::tuple_cat(gradients);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CUDA, m) {
  m.impl("legendre_conv", detail::checked<legendre_conv_cuda>);
  m.impl("legendre_conv_backward", detail::checked<legendre_conv_backward_cuda>);
}

}  // namespace hyenarec
