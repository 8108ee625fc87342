// hyena_mixer on CUDA: the launches of ../legendre_scan/cuda/scan.cuh around the HyenaMixerIO of cuda.cuh.
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAGuard.h>

#include "../legendre_scan/cuda/scan.cuh"
#include "arguments.h"
#include "cuda.cuh"

namespace hyenarec {
namespace {

// Calls run(taps, is_fast) with constants: up to four taps are compiled for 9, 17 and 33 coefficients, more
// only for any number of them (choose_scan_coeffs), which is slower.
template <typename scalar_t, typename Run>
void choose_taps(int64_t width, const Run& run) {
  if (width <= 4) {
    run(std::integral_constant<int, 4>{}, std::bool_constant<!std::is_same_v<scalar_t, double>>{});
  } else {
    run(std::integral_constant<int, 8>{}, std::false_type{});
  }
}

// What both directions read.
struct Inputs {
  OptionalRows x;
  at::Tensor weight, bias;
  int64_t channels;

  explicit Inputs(const HyenaMixerArguments& arguments)
      : x(arguments.x),
        weight(arguments.short_weight.contiguous()),
        bias(arguments.short_bias ? arguments.short_bias->contiguous() : at::Tensor()),
        channels(arguments.decay.size(0)) {}

  template <typename scalar_t, int kTaps>
  HyenaMixerIO<scalar_t, kTaps> io() const {
    using T = accumulate_t<scalar_t>;
    HyenaMixerIO<scalar_t, kTaps> io{};
    io.x = x.data<scalar_t>();
    io.weight = weight.const_data_ptr<T>();
    io.bias = bias.defined() ? bias.const_data_ptr<T>() : nullptr;
    io.width = static_cast<int>(weight.size(1));
    io.channels = channels;
    return io;
  }
};

at::Tensor hyena_mixer_cuda(const HyenaMixerArguments& arguments) {
  constexpr const char* op = "hyena_mixer";
  const at::Tensor& x = arguments.x;
  const c10::cuda::CUDAGuard guard(x.device());
  auto sizes = x.sizes().vec();
  sizes.back() = arguments.decay.size(0);
  auto out = at::empty(sizes, x.options());
  if (out.numel() == 0) return out;

  const RowSequences sequences(op, x, arguments.offsets);
  const Inputs inputs(arguments);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), op, [&] {
    choose_taps<scalar_t>(arguments.short_weight.size(1), [&](auto taps, auto is_fast) {
      ScanCall<accumulate_t<scalar_t>, is_fast()> call(op, sequences, arguments);
      auto io = inputs.io<scalar_t, taps()>();
      io.out = result_rows<scalar_t>(out);
      call.forward(io);
    });
  });
  return out;
}

// sums [3 (kTaps + 1), channels]: the gradients of each part's taps, then of its bias, into grad_weight
// [3 channels, width] and grad_bias [3 channels], each if it is wanted.
void split_sums(
    const at::Tensor& sums, int64_t channels, const at::Tensor& grad_weight, const at::Tensor& grad_bias) {
  const auto parts = sums.unflatten(0, {3, sums.size(0) / 3});
  if (grad_weight.numel() > 0)
    grad_weight.view({3, channels, -1}).copy_(parts.narrow(1, 0, grad_weight.size(1)).transpose(1, 2));
  if (grad_bias.numel() > 0) grad_bias.view({3, channels}).copy_(parts.select(1, -1));
}

Tensors<6> hyena_mixer_backward_cuda(const HyenaMixerBackwardArguments& arguments) {
  constexpr const char* op = "hyena_mixer_backward";
  const auto& [grad, forward, needs_grad, states] = arguments;
  const at::Tensor& x = forward.x;
  const c10::cuda::CUDAGuard guard(x.device());
  const auto gradients = detail::empty_gradients(forward, needs_grad);
  const auto& [grad_x, grad_weight, grad_bias, grad_coeffs, grad_decay, grad_skip] = gradients;
  if (x.numel() == 0) {
    for (const auto& parameter : {grad_weight, grad_bias, grad_coeffs, grad_decay, grad_skip})
      parameter.zero_();
    return std::tuple_cat(gradients);
  }
  const bool needs_x = grad_x.numel() > 0, needs_filter = grad_weight.numel() + grad_bias.numel() > 0;
  const bool needs_parts = needs_x || needs_filter;  // the gradients of q, k and v
  const GradientMask wanted{
      needs_parts, needs_parts,
      needs_filter || grad_coeffs.numel() + grad_decay.numel() + grad_skip.numel() > 0};
  if (!wanted.any()) return std::tuple_cat(gradients);

  const RowSequences sequences(op, x, forward.offsets);
  const Inputs inputs(forward);
  const OptionalRows output(grad);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), op, [&] {
    choose_taps<scalar_t>(forward.short_weight.size(1), [&](auto taps, auto is_fast) {
      using T = accumulate_t<scalar_t>;
      using IO = HyenaMixerIO<scalar_t, taps()>;
      ScanCall<T, is_fast()> call(op, sequences, forward);
      auto io = inputs.io<scalar_t, taps()>();
      io.grad = output.data<scalar_t>();
      io.grad_x = result_rows<scalar_t>(gradients[0]);
      const bool has_edges = call.work().segments > 1;
      const auto edges = has_edges ? call.segment_scratch(6 * IO::kHalo) : at::Tensor();
      io.edges = has_edges ? edges.template mutable_data_ptr<T>() : nullptr;
      io.edge_pitch = call.pitch();
      const auto sums = call.backward(io, wanted, {gradients[3], gradients[4], gradients[5], {}}).io_sums;
      if (has_edges && needs_x) launch(call.shape(), hyena_mixer_join<scalar_t, taps()>, call.work(), io);
      if (needs_filter) split_sums(sums, inputs.channels, gradients[1], gradients[2]);
    });
  });
  return std::tuple_cat(gradients);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CUDA, m) {
  m.impl("hyena_mixer", detail::checked<hyena_mixer_cuda>);
  m.impl("hyena_mixer_backward", detail::checked<hyena_mixer_backward_cuda>);
}

}  // namespace hyenarec
