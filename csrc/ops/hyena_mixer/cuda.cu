// hyena_mixer on CUDA: the launches of ../legendre_scan/cuda/scan.cuh around the HyenaMixerIO of cuda.cuh.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "../common/argument_checks.h"
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

template <typename T, bool is_fast>
ScanCall<T, is_fast> scan_call(
    const char* op, const RowSequences& sequences, const HyenaMixerArguments& arguments) {
  return {op, sequences, arguments.coeffs, arguments.decay, arguments.skip, arguments.horizon.expect_int()};
}

at::Tensor hyena_mixer_cuda(const HyenaMixerArguments& arguments) {
  constexpr const char* op = "hyena_mixer";
  detail::check_hyena_mixer_arguments(arguments);
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
      auto call = scan_call<accumulate_t<scalar_t>, is_fast()>(op, sequences, arguments);
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

// The gradients that launch() fills, each [0] if it isn't wanted.
struct Results {
  at::Tensor x, weight, bias, coeffs, decay, skip;

  explicit Results(const HyenaMixerBackwardArguments& arguments) {
    const auto& [grad, forward, needs_grad, states] = arguments;
    x = detail::empty_gradient(needs_grad[0], forward.x);
    weight = detail::empty_gradient(needs_grad[1], forward.short_weight);
    bias = detail::empty_gradient(
        needs_grad[2] && forward.short_bias, forward.short_bias.value_or(forward.decay));
    coeffs = detail::empty_gradient(needs_grad[3], forward.coeffs);
    decay = detail::empty_gradient(needs_grad[4], forward.decay);
    skip = detail::empty_gradient(needs_grad[5], forward.skip);
  }
  HyenaMixerGradients all() const { return {x, weight, bias, coeffs, decay, skip}; }
};

HyenaMixerGradients hyena_mixer_backward_cuda(const HyenaMixerBackwardArguments& arguments) {
  constexpr const char* op = "hyena_mixer_backward";
  detail::check_hyena_mixer_backward_arguments(arguments);
  const auto& [grad, forward, needs_grad, states] = arguments;
  const at::Tensor& x = forward.x;
  const c10::cuda::CUDAGuard guard(x.device());
  Results grads(arguments);
  if (x.numel() == 0) {
    for (auto* parameter : {&grads.weight, &grads.bias, &grads.coeffs, &grads.decay, &grads.skip})
      parameter->zero_();
    return grads.all();
  }
  const bool needs_x = needs_grad[0], needs_filter = grads.weight.numel() + grads.bias.numel() > 0;
  const bool needs_parts = needs_x || needs_filter;  // the gradients of q, k and v
  const GradientMask wanted{
      needs_parts, needs_parts, needs_filter || needs_grad[3] || needs_grad[4] || needs_grad[5]};
  if (!wanted.any()) return grads.all();

  const RowSequences sequences(op, x, forward.offsets);
  const Inputs inputs(forward);
  const OptionalRows output(grad);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), op, [&] {
    choose_taps<scalar_t>(forward.short_weight.size(1), [&](auto taps, auto is_fast) {
      using T = accumulate_t<scalar_t>;
      using IO = HyenaMixerIO<scalar_t, taps()>;
      auto call = scan_call<T, is_fast()>(op, sequences, forward);
      auto io = inputs.io<scalar_t, taps()>();
      io.grad = output.data<scalar_t>();
      io.grad_x = result_rows<scalar_t>(grads.x);
      const bool has_edges = call.work().segments > 1;
      const auto edges = has_edges ? call.segment_scratch(6 * IO::kHalo) : at::Tensor();
      io.edges = has_edges ? edges.template mutable_data_ptr<T>() : nullptr;
      io.edge_pitch = call.pitch();
      const auto sums = call.backward(io, wanted, {grads.coeffs, grads.decay, grads.skip, {}}).io_sums;
      if (has_edges && needs_x) launch(call.shape(), hyena_mixer_join<scalar_t, taps()>, call.work(), io);
      if (needs_filter) split_sums(sums, inputs.channels, grads.weight, grads.bias);
    });
  });
  return grads.all();
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CUDA, m) {
  m.impl("hyena_mixer", detail::unpacked<HyenaMixerSignature, hyena_mixer_cuda>);
  m.impl("hyena_mixer_backward", detail::unpacked<HyenaMixerBackward, hyena_mixer_backward_cuda>);
}

}  // namespace hyenarec
