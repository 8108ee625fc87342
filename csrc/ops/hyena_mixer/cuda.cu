// hyena_mixer on CUDA: the launches of legendre_scan_launch.cuh around the source of hyena_mixer.cuh.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "../common/argument_checks.h"
#include "../legendre_scan/cuda/launch.cuh"
#include "../legendre_scan/states.h"
#include "cuda.cuh"
#include "hyena_mixer.h"

namespace hyenarec {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

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

  Inputs(const at::Tensor& x_, const at::Tensor& weight_, const OptionalTensor& bias_, int64_t channels_)
      : x(x_),
        weight(weight_.contiguous()),
        bias(bias_ ? bias_->contiguous() : at::Tensor()),
        channels(channels_) {}

  template <typename scalar_t, int kTaps>
  MixerSource<scalar_t, kTaps> source() const {
    using T = accumulate_t<scalar_t>;
    MixerSource<scalar_t, kTaps> result{};
    result.x = x.data<scalar_t>();
    result.weight = weight.const_data_ptr<T>();
    result.bias = bias.defined() ? bias.const_data_ptr<T>() : nullptr;
    result.width = static_cast<int>(weight.size(1));
    result.channels = channels;
    return result;
  }
};

at::Tensor hyena_mixer_cuda(
    const at::Tensor& x,
    const at::Tensor& short_weight,
    const OptionalTensor& short_bias,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const at::Tensor& skip,
    const OptionalTensor& offsets) {
  detail::check_hyena_mixer_arguments(x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets);
  const c10::cuda::CUDAGuard guard(x.device());
  auto sizes = x.sizes().vec();
  sizes.back() = decay.size(0);
  auto out = at::empty(sizes, x.options());
  if (out.numel() == 0) return out;

  const RowSequences sequences("hyena_mixer", x, offsets);
  const Inputs inputs(x, short_weight, short_bias, decay.size(0));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "hyena_mixer", [&] {
    choose_taps<scalar_t>(short_weight.size(1), [&](auto taps, auto is_fast) {
      ScanCall<accumulate_t<scalar_t>, is_fast()> call(
          "hyena_mixer", sequences, coeffs, decay, skip, horizon.guard_int(__FILE__, __LINE__));
      auto source = inputs.source<scalar_t, taps()>();
      source.out = result_rows<scalar_t>(out);
      call.forward(source);
    });
  });
  return out;
}

// The backward pass needs no states here: they are zeros.
std::tuple<at::Tensor, at::Tensor> hyena_mixer_with_states_cuda(
    const at::Tensor& x,
    const at::Tensor& short_weight,
    const OptionalTensor& short_bias,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const at::Tensor& skip,
    const OptionalTensor& offsets) {
  const auto out = hyena_mixer_cuda(x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets);
  return {out, detail::empty_legendre_states(x, coeffs, horizon, offsets).zero_()};
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

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> hyena_mixer_backward_cuda(
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& short_weight,
    const OptionalTensor& short_bias,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    c10::SymInt horizon,
    const at::Tensor& skip,
    const OptionalTensor& offsets,
    std::array<bool, 6> needs_grad,
    const OptionalTensor& states) {
  detail::check_hyena_mixer_backward_arguments(
      grad, x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets, states);
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t channels = decay.size(0);
  auto grad_x = detail::empty_gradient(needs_grad[0], x);
  auto grad_weight = detail::empty_gradient(needs_grad[1], short_weight);
  auto grad_bias = detail::empty_gradient(needs_grad[2] && short_bias, short_bias ? *short_bias : decay);
  auto grad_coeffs = detail::empty_gradient(needs_grad[3], coeffs);
  auto grad_decay = detail::empty_gradient(needs_grad[4], decay);
  auto grad_skip = detail::empty_gradient(needs_grad[5], skip);
  const auto all = [&] {
    return std::make_tuple(grad_x, grad_weight, grad_bias, grad_coeffs, grad_decay, grad_skip);
  };
  if (x.numel() == 0) {
    for (auto* parameter : {&grad_weight, &grad_bias, &grad_coeffs, &grad_decay, &grad_skip})
      parameter->zero_();
    return all();
  }
  const bool needs_filter = grad_weight.numel() + grad_bias.numel() > 0;
  const bool needs_kernel = needs_grad[3] || needs_grad[4] || needs_grad[5];
  const bool needs_parts = needs_grad[0] || needs_filter;  // the gradients of q, k and v
  if (!(needs_parts || needs_kernel)) return all();

  const RowSequences sequences("hyena_mixer_backward", x, offsets);
  const Inputs inputs(x, short_weight, short_bias, channels);
  const OptionalRows output(grad);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "hyena_mixer_backward", [&] {
    choose_taps<scalar_t>(short_weight.size(1), [&](auto taps, auto is_fast) {
      using T = accumulate_t<scalar_t>;
      using Source = MixerSource<scalar_t, taps()>;
      ScanCall<T, is_fast()> call(
          "hyena_mixer_backward", sequences, coeffs, decay, skip, horizon.guard_int(__FILE__, __LINE__));
      auto source = inputs.source<scalar_t, taps()>();
      source.grad = output.data<scalar_t>();
      source.grad_x = result_rows<scalar_t>(grad_x);
      const bool has_edges = call.work().segments > 1;
      const auto edges = has_edges ? call.segment_scratch(6 * Source::kHalo) : at::Tensor();
      source.edges = has_edges ? edges.template mutable_data_ptr<T>() : nullptr;
      source.edge_pitch = call.pitch();
      const auto grads = call.backward(
          source, {needs_parts, needs_parts, needs_filter || needs_kernel},
          {grad_coeffs, grad_decay, grad_skip, {}});
      if (has_edges && needs_grad[0])
        launch(call.shape(), hyena_mixer_join<scalar_t, taps()>, call.work(), source);
      if (needs_filter) split_sums(grads.source_sums, channels, grad_weight, grad_bias);
    });
  });
  return all();
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, CUDA, m) {
  m.impl("hyena_mixer", hyenarec::hyena_mixer_cuda);
  m.impl("hyena_mixer_with_states", hyenarec::hyena_mixer_with_states_cuda);
  m.impl("hyena_mixer_backward", hyenarec::hyena_mixer_backward_cuda);
}
