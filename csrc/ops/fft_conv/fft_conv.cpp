#include "fft_conv.h"

#include <ATen/ops/zeros.h>

#include "../common/autograd.h"
#include "arguments.h"

namespace hyenarec {

constexpr auto fft_conv_op = detail::dispatch<"fft_conv", at::Tensor, FftConvArguments>;

at::Tensor fft_conv(
    const at::Tensor& u, const at::Tensor& kernel, const OptionalTensor& skip, const OptionalTensor& pre_gate,
    const OptionalTensor& post_gate) {
  return fft_conv_op({u, kernel, skip, pre_gate, post_gate});
}

void FftConvArguments::check(const char* op) const {
  using namespace detail;
  const Argument u_argument{op, "u", u};
  check_activation_type(u_argument);
  check_rank(u_argument, 3, "[B, L, D]");
  const auto channels = u.sym_size(2);
  check_parameter({op, "kernel", kernel}, 2, channels, "[D, K]", "D", u_argument);
  if (skip) check_parameter({op, "skip", *skip}, 1, channels, "[D]", "D", u_argument);
  if (pre_gate) check_like({op, "pre_gate", *pre_gate}, u_argument);
  if (post_gate) check_like({op, "post_gate", *post_gate}, u_argument);
}

void FftConvArguments::check_backward(const at::Tensor& grad) const {
  const char* op = "fft_conv_backward";
  check(op);
  detail::check_like({op, "grad", grad}, {op, "u", u});
}

at::Tensor FftConvArguments::padded_kernel(
    int64_t first_channel, int64_t channels, int64_t lags, int64_t size) const {
  auto padded = at::zeros({channels, size}, kernel.options());
  padded.narrow(1, 0, lags).copy_(kernel.narrow(0, first_channel, channels).narrow(1, 0, lags));
  if (skip) padded.select(1, 0).add_(skip->narrow(0, first_channel, channels));
  return padded;
}

TORCH_LIBRARY_FRAGMENT(hyenarec, m) {
  m.def(
      "fft_conv(Tensor u, Tensor kernel, Tensor? skip=None, Tensor? pre_gate=None, Tensor? post_gate=None) "
      "-> Tensor");
  m.def(
      "fft_conv_backward(Tensor grad, Tensor u, Tensor kernel, Tensor? skip, Tensor? pre_gate, Tensor? "
      "post_gate, bool[5] needs_grad) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("fft_conv", detail::checked<detail::meta_like_first<FftConvArguments>>);
  m.impl("fft_conv_backward", detail::checked<detail::meta_gradients<FftConvBackwardArguments>>);
}

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("fft_conv", detail::unchecked<detail::gradient<fft_conv_op, fft_conv_backward>>);
  m.impl("fft_conv_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
