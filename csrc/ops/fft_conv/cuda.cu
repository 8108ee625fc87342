// fft_conv on CUDA: cuFFT between the kernels of fft_conv.cuh. The batch (and, for very long sequences, the
// channels) is cut so that the buffers below stay within a limit.
#include <ATen/Dispatch.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "../common/channels_last.h"
#include "../common/cuda/launch.cuh"
#include "arguments.h"
#include "cuda.cuh"
#include "cufft_plan.h"
#include "fft_size.h"

namespace hyenarec {
namespace {

// Bytes that one call may hold beside its inputs and outputs, in 2^20; HYENAREC_FFT_WORKSPACE_MIB overrides
// it.
constexpr int64_t kWorkspaceMiB = 256;

int64_t workspace_limit() {
  const char* text = std::getenv("HYENAREC_FFT_WORKSPACE_MIB");
  if (text == nullptr) return kWorkspaceMiB << 20;
  char* end = nullptr;
  const long long mebibytes = std::strtoll(text, &end, 10);
  TORCH_CHECK(
      end != text && *end == '\0' && mebibytes >= 0 && mebibytes < (1LL << 40),
      "fft_conv: HYENAREC_FFT_WORKSPACE_MIB must be a whole number of 2^20 bytes, got \"", text, "\"");
  return mebibytes << 20;
}

// The sizes of a call and how it is cut.
struct Geometry {
  int64_t batch, length, channels, lags;
  int64_t size, frequencies, pitch;
  int64_t batch_step, channel_step;  // sequences and channels that are handled at a time

  // `buffers`: signals held per sequence and channel, cuFFT's work area (about one more) included.
  Geometry(const FftConvArguments& arguments, int64_t buffers, size_t element_bytes)
      : batch(arguments.u.size(0)),
        length(arguments.u.size(1)),
        channels(arguments.u.size(2)),
        lags(fft_conv_lags(length, arguments.kernel.size(1))),
        // No transforms of one number.
        size(std::max<int64_t>(fft_conv_size(length, arguments.kernel.size(1)), 2)),
        frequencies(spectrum_size(size)),
        pitch(signal_pitch(size)) {
    constexpr int64_t kKernelBuffers = 3;  // per channel: the kernel, its gradient, cuFFT's work area
    const int64_t signals = workspace_limit() / (pitch * static_cast<int64_t>(element_bytes));
    channel_step = std::clamp<int64_t>(signals / (buffers + kKernelBuffers), 1, channels);
    batch_step = std::clamp<int64_t>((signals / channel_step - kKernelBuffers) / buffers, 1, batch);
    batch_step = ceil_div(batch, ceil_div(batch, batch_step));  // equal parts need fewer plans
  }
};

// The part of a call that is handled at a time.
struct Part {
  int64_t first_batch, batch, first_channel, channels;
};

// An activation, a gate or a gradient of one: unit channel stride, or undefined.
struct Source {
  at::Tensor tensor;

  explicit Source(const OptionalTensor& source)
      : tensor(source ? with_unit_channel_stride(*source) : at::Tensor()) {}

  template <typename scalar_t>
  Activation<const scalar_t> part(const Part& part) const {
    if (!tensor.defined()) return {nullptr, 0, 0};
    return {
        tensor.const_data_ptr<scalar_t>() + part.first_batch * tensor.stride(0) + part.first_channel,
        tensor.stride(0), tensor.stride(1)};
  }
};

template <typename scalar_t>
Activation<scalar_t> target(const at::Tensor& tensor, const Part& part) {
  if (tensor.numel() == 0) return {nullptr, 0, 0};  // not wanted
  return {
      tensor.mutable_data_ptr<scalar_t>() + part.first_batch * tensor.stride(0) + part.first_channel,
      tensor.stride(0), tensor.stride(1)};
}

// The transforms and kernels of one call, for activations of type scalar_t.
template <typename scalar_t>
class Transformer {
 public:
  using T = accumulate_t<scalar_t>;

  Transformer(const Geometry& geometry, const at::TensorOptions& options)
      : geometry_(geometry), options_(options) {}

  at::Tensor empty(int64_t signals) const { return at::empty({signals, geometry_.pitch}, options_); }

  // The spectrum of kernel[first .. first + channels] with skip at lag 0: [channels, frequencies].
  at::Tensor kernel_spectrum(const FftConvArguments& arguments, const Part& part) const {
    auto signal = at::zeros({part.channels, geometry_.pitch}, options_);
    signal.narrow(1, 0, geometry_.lags)
        .copy_(arguments.kernel.narrow(0, part.first_channel, part.channels).narrow(1, 0, geometry_.lags));
    if (arguments.skip)
      signal.select(1, 0).add_(arguments.skip->narrow(0, part.first_channel, part.channels));
    transform(signal, true);
    return signal;
  }

  // The spectra of input gate: [batch, channels, frequencies].
  at::Tensor spectrum(const Source& input, const Source& gate, const Part& part) const {
    auto signal = empty(part.batch * part.channels);
    launch(
        transpose_shape<T>(part.batch, part.channels, geometry_.size), fft_conv_pack<scalar_t>, part.channels,
        geometry_.length, geometry_.size, geometry_.pitch, input.part<scalar_t>(part),
        gate.part<scalar_t>(part), signal.template mutable_data_ptr<T>());
    transform(signal, true);
    return signal;
  }

  // Undefined tensors stand for what is not needed.
  void product(
      const SpectralProducts& wanted, const Part& part, const at::Tensor& kernel, const at::Tensor& z,
      const at::Tensor& y, const at::Tensor& grad_kernel) const {
    launch(
        product_shape<T>(part.batch, part.channels, geometry_.frequencies), fft_conv_product<T>, part.batch,
        part.channels, geometry_.frequencies, T(1) / static_cast<T>(geometry_.size), wanted, complex(kernel),
        complex(z), complex(y), complex(grad_kernel));
  }

  // signal (spectra when called) times the factors, cropped, into out and second_out where they are wanted.
  void unpack(
      const at::Tensor& signal, const Part& part, const Source& factor, const at::Tensor& out,
      const Source& second_factor, const at::Tensor& second_out) const {
    transform(signal, false);
    launch(
        transpose_shape<T>(part.batch, part.channels, geometry_.length), fft_conv_unpack<scalar_t>,
        part.channels, geometry_.length, geometry_.pitch, signal.template const_data_ptr<T>(),
        factor.part<scalar_t>(part), target<scalar_t>(out, part), second_factor.part<scalar_t>(part),
        target<scalar_t>(second_out, part));
  }

  // Time to frequency or back, in place.
  void transform(const at::Tensor& signals, bool forward) const {
    constexpr bool kDouble = std::is_same_v<T, double>;
    const auto type = forward ? (kDouble ? CUFFT_D2Z : CUFFT_R2C) : (kDouble ? CUFFT_Z2D : CUFFT_C2R);
    const auto plan = get_cufft_plan({signals.device().index(), geometry_.size, signals.size(0), type});
    execute_cufft_plan(*plan, signals.mutable_data_ptr());
  }

 private:
  static Complex<T>* complex(const at::Tensor& signals) {
    return signals.defined() ? static_cast<Complex<T>*>(signals.mutable_data_ptr()) : nullptr;
  }

  const Geometry& geometry_;
  const at::TensorOptions options_;
};

// Calls start(part) for each range of channels (its batch is empty), then run(part) for its parts of the
// batch in order, then finish(part).
template <typename Start, typename Run, typename Finish>
void for_each_part(const Geometry& geometry, const Start& start, const Run& run, const Finish& finish) {
  for (int64_t channel = 0; channel < geometry.channels; channel += geometry.channel_step) {
    const int64_t channels = std::min(geometry.channel_step, geometry.channels - channel);
    const Part range{0, 0, channel, channels};
    start(range);
    for (int64_t first = 0; first < geometry.batch; first += geometry.batch_step)
      run(Part{first, std::min(geometry.batch_step, geometry.batch - first), channel, channels});
    finish(range);
  }
}

at::Tensor fft_conv_cuda(const FftConvArguments& arguments) {
  const auto& u = arguments.u;
  const c10::cuda::CUDAGuard guard(u.device());
  auto out = at::empty(u.sizes(), u.options());
  if (out.numel() == 0) return out;

  const Source input(u), pre(arguments.pre_gate), post(arguments.post_gate), none(std::nullopt);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, u.scalar_type(), "fft_conv", [&] {
    const Geometry geometry(arguments, 2, sizeof(accumulate_t<scalar_t>));
    const Transformer<scalar_t> fft(geometry, arguments.kernel.options());
    at::Tensor weight;
    for_each_part(
        geometry, [&](const Part& range) { weight = fft.kernel_spectrum(arguments, range); },
        [&](const Part& part) {
          const auto z = fft.spectrum(input, pre, part);
          fft.product(
              {.convolve = true, .correlate = false, .reduce = false, .accumulate = false}, part, weight, z,
              {}, {});
          fft.unpack(z, part, post, out, none, at::Tensor());
        },
        [](const Part&) {});
  });
  return out;
}

Tensors<5> fft_conv_backward_cuda(const FftConvBackwardArguments& arguments) {
  const auto& [u, kernel, skip, pre_gate, post_gate] = arguments.forward;
  const c10::cuda::CUDAGuard guard(u.device());
  const auto gradients = detail::empty_gradients(arguments.forward, arguments.needs_grad);
  for (int i : {1, 2}) gradients[i].zero_();  // lags beyond the sequence have no gradient
  const FftConvWanted wanted(gradients);
  if (u.numel() == 0 || !(wanted.needs_z() || wanted.needs_h())) return std::tuple_cat(gradients);

  const Source input(u), output(arguments.grad), pre(pre_gate), post(post_gate), none(std::nullopt);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, u.scalar_type(), "fft_conv_backward", [&] {
    const int64_t buffers = 1 + wanted.needs_z() + wanted.needs_h();
    const Geometry geometry(arguments.forward, buffers, sizeof(accumulate_t<scalar_t>));
    const Transformer<scalar_t> fft(geometry, kernel.options());
    at::Tensor weight, grad_weight;
    for_each_part(
        geometry,
        [&](const Part& range) {
          if (wanted.post_gate || wanted.of_z()) weight = fft.kernel_spectrum(arguments.forward, range);
          if (wanted.correlation()) grad_weight = fft.empty(range.channels);
        },
        [&](const Part& part) {
          at::Tensor z, y;
          if (wanted.needs_z()) z = fft.spectrum(input, pre, part);
          if (wanted.needs_h()) y = fft.spectrum(output, post, part);
          const bool accumulate = part.first_batch > 0;
          fft.product(
              {wanted.post_gate, wanted.of_z(), wanted.correlation(), accumulate}, part, weight, z, y,
              grad_weight);
          if (wanted.of_z()) fft.unpack(y, part, pre, gradients[0], input, gradients[3]);
          if (wanted.post_gate) fft.unpack(z, part, output, gradients[4], none, at::Tensor());
        },
        [&](const Part& range) {
          if (!wanted.correlation()) return;
          fft.transform(grad_weight, false);
          if (wanted.kernel)
            gradients[1]
                .narrow(0, range.first_channel, range.channels)
                .narrow(1, 0, geometry.lags)
                .copy_(grad_weight.narrow(1, 0, geometry.lags));
          if (wanted.skip)
            gradients[2].narrow(0, range.first_channel, range.channels).copy_(grad_weight.select(1, 0));
        });
  });
  return std::tuple_cat(gradients);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CUDA, m) {
  m.impl("fft_conv", detail::checked<fft_conv_cuda>);
  m.impl("fft_conv_backward", detail::checked<fft_conv_backward_cuda>);
}

}  // namespace hyenarec
