#include "legendre_kernel.h"

#include "../common/autograd.h"
#include "arguments.h"

namespace hyenarec {

constexpr auto legendre_kernel_op = detail::dispatch<"legendre_kernel", at::Tensor, LegendreKernelArguments>;

at::Tensor legendre_kernel(
    const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon, c10::SymInt length) {
  return legendre_kernel_op({coeffs, decay, std::move(horizon), std::move(length)});
}

void LegendreKernelArguments::check(const char* op) const {
  using namespace detail;
  check_kernel_parameters(op, coeffs, decay, std::nullopt, horizon);
  TORCH_SYM_CHECK(length.sym_ge(0), op, ": length must be at least 0, got ", length);
  TORCH_SYM_CHECK(
      length.sym_le(horizon), op, ": length must be at most the horizon = ", horizon, ", got ", length);
}

void LegendreKernelArguments::check_backward(const at::Tensor& grad) const {
  using namespace detail;
  const char* op = "legendre_kernel_backward";
  check(op);
  const Argument argument{op, "grad", grad};
  check_rank(argument, 2, "[D, length]");
  check_size(argument, 0, coeffs.sym_size(0), "[D, length]", "D");
  check_size(argument, 1, length, "[D, length]", "length");
  check_type(argument, coeffs.scalar_type(), "like coeffs");
  check_device(argument, {op, "coeffs", coeffs});
}

TORCH_LIBRARY_FRAGMENT(hyenarec, m) {
  m.def("legendre_kernel(Tensor coeffs, Tensor decay, SymInt horizon, SymInt length) -> Tensor");
  m.def(
      "legendre_kernel_backward(Tensor grad, Tensor coeffs, Tensor decay, SymInt horizon, SymInt length, "
      "bool[2] "
      "needs_grad) -> (Tensor, Tensor)");
}

static at::Tensor legendre_kernel_meta(const LegendreKernelArguments& arguments) {
  const auto& [coeffs, decay, horizon, length] = arguments;
  return at::empty_symint({coeffs.sym_size(0), length}, coeffs.options());
}

TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("legendre_kernel", detail::checked<legendre_kernel_meta>);
  m.impl(
      "legendre_kernel_backward", detail::checked<detail::meta_gradients<LegendreKernelBackwardArguments>>);
}

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl(
      "legendre_kernel", detail::unchecked<detail::gradient<legendre_kernel_op, legendre_kernel_backward>>);
  m.impl("legendre_kernel_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
