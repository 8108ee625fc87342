// The operator behind legendre_kernel, and the checks of their arguments.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <tuple>

namespace hyenarec {

// Gradients of legendre_kernel from grad [D, length] (any strides): {coeffs [D, N], decay [D]}, contiguous.
// Not differentiable: a second derivative raises.
std::tuple<at::Tensor, at::Tensor> legendre_kernel_backward(
    const at::Tensor& grad, const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon);

namespace detail {

// Every kernel (CPU, CUDA, Meta) calls these first, so that checks also run under inference_mode.
void check_legendre_kernel_arguments(
    const at::Tensor& coeffs, const at::Tensor& decay, const c10::SymInt& horizon, const c10::SymInt& length);
void check_legendre_kernel_backward_arguments(
    const at::Tensor& grad, const at::Tensor& coeffs, const at::Tensor& decay, const c10::SymInt& horizon);

}  // namespace detail
}  // namespace hyenarec
