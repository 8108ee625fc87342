// legendre_conv on CUDA: the launches of legendre_scan_launch.cuh around the sources of legendre_conv.cuh.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "../common/argument_checks.h"
#include "../legendre_scan/cuda/launch.cuh"
#include "../legendre_scan/states.h"
#include "cuda.cuh"
#include "legendre_conv.h"

namespace hyenarec {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor legendre_conv_cuda(
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate,
    const OptionalTensor& offsets) {
  detail::check_legendre_conv_arguments(u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets);
  const c10::cuda::CUDAGuard guard(u.device());
  auto out = at::empty(u.sizes(), u.options());
  if (out.numel() == 0) return out;

  const RowSequences sequences("legendre_conv", u, offsets);
  const OptionalRows input(u), pre(pre_gate), post(post_gate);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, u.scalar_type(), "legendre_conv", [&] {
    ScanCall<accumulate_t<scalar_t>> call(
        "legendre_conv", sequences, coeffs, decay, skip, horizon.guard_int(__FILE__, __LINE__));
    ConvSource<scalar_t> source{};
    source.u = input.data<scalar_t>();
    source.pre = pre.data<scalar_t>();
    source.post = post.data<scalar_t>();
    source.out = result_rows<scalar_t>(out);
    call.forward(source);
  });
  return out;
}

// The backward pass needs no states here: they are zeros.
std::tuple<at::Tensor, at::Tensor> legendre_conv_with_states_cuda(
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate,
    const OptionalTensor& offsets) {
  const auto out = legendre_conv_cuda(u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets);
  return {out, detail::empty_legendre_states(u, coeffs, horizon, offsets).zero_()};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
legendre_conv_backward_cuda(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const OptionalTensor& skip,
    const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate,
    const OptionalTensor& offsets,
    std::array<bool, 6> needs_grad,
    const OptionalTensor& states) {
  detail::check_legendre_conv_backward_arguments(
      grad, u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets, states);
  const c10::cuda::CUDAGuard guard(u.device());
  const bool needs_skip = needs_grad[3] && skip;
  auto grad_u = detail::empty_gradient(needs_grad[0], u);
  auto grad_pre = detail::empty_gradient(needs_grad[4] && pre_gate, u);
  auto grad_post = detail::empty_gradient(needs_grad[5] && post_gate, u);
  auto grad_coeffs = detail::empty_gradient(needs_grad[1], coeffs);
  auto grad_decay = detail::empty_gradient(needs_grad[2], decay);
  auto grad_skip = detail::empty_gradient(needs_skip, decay);
  const auto all = [&] {
    return std::make_tuple(grad_u, grad_coeffs, grad_decay, grad_skip, grad_pre, grad_post);
  };
  const ScanWanted wanted{
      grad_u.numel() + grad_pre.numel() > 0, grad_post.numel() > 0,
      needs_grad[1] || needs_grad[2] || needs_skip};
  if (u.numel() == 0) {
    grad_coeffs.zero_();
    grad_decay.zero_();
    grad_skip.zero_();
    return all();
  }
  if (!(wanted.input || wanted.output || wanted.kernel)) return all();

  const RowSequences sequences("legendre_conv_backward", u, offsets);
  const OptionalRows input(u), pre(pre_gate), post(post_gate), output(grad);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, u.scalar_type(), "legendre_conv_backward", [&] {
    ScanCall<accumulate_t<scalar_t>> call(
        "legendre_conv_backward", sequences, coeffs, decay, skip, horizon.guard_int(__FILE__, __LINE__));
    const ConvSource<scalar_t> source{
        input.data<scalar_t>(),
        pre.data<scalar_t>(),
        post.data<scalar_t>(),
        output.data<scalar_t>(),
        {nullptr, 0},
        result_rows<scalar_t>(grad_u),
        result_rows<scalar_t>(grad_pre),
        result_rows<scalar_t>(grad_post)};
    call.backward(source, wanted, {grad_coeffs, grad_decay, grad_skip, {}});
  });
  return all();
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, CUDA, m) {
  m.impl("legendre_conv", hyenarec::legendre_conv_cuda);
  m.impl("legendre_conv_with_states", hyenarec::legendre_conv_with_states_cuda);
  m.impl("legendre_conv_backward", hyenarec::legendre_conv_backward_cuda);
}
