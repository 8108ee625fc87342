// The arguments of legendre_kernel, the operator behind it, and the checks of both.
#pragma once

#include "../common/operators.h"
#include "legendre_kernel.h"

namespace hyenarec {

struct LegendreKernelArguments {
  const at::Tensor &coeffs, &decay;
  c10::SymInt horizon, length;

  auto each() const { return std::tie(coeffs, decay, horizon, length); }
  void check(const char* op = "legendre_kernel") const;
  void check_backward(const at::Tensor& grad) const;
};

// Gradients from grad [D, length] (any strides): {coeffs, decay}, see detail::empty_gradients. Not
// differentiable: a second derivative raises.
using LegendreKernelBackwardArguments = detail::BackwardArguments<LegendreKernelArguments, 2>;
constexpr auto legendre_kernel_backward =
    detail::dispatch<"legendre_kernel_backward", Tensors<2>, LegendreKernelBackwardArguments>;

}  // namespace hyenarec
