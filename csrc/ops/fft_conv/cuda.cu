// fft_conv on CUDA: cuFFT between the kernels of fft_conv.cuh. The batch (and, for very long sequences, the
// channels) is cut so that the buffers below stay within a limit.
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>
#include <cstdlib>

#include "../common/channels_last.h"
#include "../common/cuda/launch.cuh"
#include "../common/raw_data.h"
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

// An activation or a gate with unit channel stride; undefined if it is absent.
at::Tensor readable(const OptionalTensor& tensor) {
  return tensor ? with_unit_channel_stride(*tensor) : at::Tensor();
}

// A part of what is readable (const) or of a gradient; without data if it is absent or not wanted.
template <typename scalar_t>
Activation<scalar_t> part_of(const at::Tensor& tensor, const Part& part) {
  if (!tensor.defined() || tensor.numel() == 0) return {nullptr, 0, 0};
  scalar_t* data;
  if constexpr (std::is_const_v<scalar_t>)
    data = tensor.const_data_ptr<scalar_t>();
  else
    data = tensor.mutable_data_ptr<scalar_t>();
  return {
      data + part.first_batch * tensor.stride(0) + part.first_channel, tensor.stride(0), tensor.stride(1)};
}

// The transforms and kernels of one call, for activations of type scalar_t.
template <typename scalar_t>
struct Transformer {
  using T = accumulate_t<scalar_t>;

  const Geometry& geometry;
  const at::TensorOptions options;

  at::Tensor empty(int64_t signals) const { return at::empty({signals, geometry.pitch}, options); }

  // Of the kernels of a range of channels, with skip at lag 0: [channels, frequencies].
  at::Tensor kernel_spectrum(
      const FftConvArguments& arguments, int64_t first_channel, int64_t channels) const {
    auto signal = arguments.padded_kernel(first_channel, channels, geometry.lags, geometry.pitch);
    transform(signal, true);
    return signal;
  }

  // The spectra of input gate: [batch, channels, frequencies].
  at::Tensor spectrum(const at::Tensor& input, const at::Tensor& gate, const Part& part) const {
    auto signal = empty(part.batch * part.channels);
    launch(
        transpose_shape<T>(part.batch, part.channels, geometry.size), fft_conv_pack<scalar_t>, part.channels,
        geometry.length, geometry.size, geometry.pitch, part_of<const scalar_t>(input, part),
        part_of<const scalar_t>(gate, part), signal.template mutable_data_ptr<T>());
    transform(signal, true);
    return signal;
  }

  // Undefined tensors stand for what is not needed.
  void product(
      const SpectralProducts& wanted, const Part& part, const at::Tensor& kernel, const at::Tensor& z,
      const at::Tensor& y = {}, const at::Tensor& grad_kernel = {}) const {
    launch(
        product_shape<T>(part.batch, part.channels, geometry.frequencies), fft_conv_product<T>, part.batch,
        part.channels, geometry.frequencies, T(1) / static_cast<T>(geometry.size), wanted, complex(kernel),
        complex(z), complex(y), complex(grad_kernel));
  }

  // signal (spectra when called) times the factors, cropped, into out and second_out where they are wanted.
  void unpack(
      const at::Tensor& signal, const Part& part, const at::Tensor& factor, const at::Tensor& out,
      const at::Tensor& second_factor = {}, const at::Tensor& second_out = {}) const {
    transform(signal, false);
    launch(
        transpose_shape<T>(part.batch, part.channels, geometry.length), fft_conv_unpack<scalar_t>,
        part.channels, geometry.length, geometry.pitch, signal.template const_data_ptr<T>(),
        part_of<const scalar_t>(factor, part), part_of<scalar_t>(out, part),
        part_of<const scalar_t>(second_factor, part), part_of<scalar_t>(second_out, part));
  }

  // Time to frequency or back, in place.
  void transform(const at::Tensor& signals, bool forward) const {
    constexpr bool kDouble = std::is_same_v<T, double>;
    const auto type = forward ? (kDouble ? CUFFT_D2Z : CUFFT_R2C) : (kDouble ? CUFFT_Z2D : CUFFT_C2R);
    execute_cufft(
        {signals.device().index(), geometry.size, signals.size(0), type}, signals.mutable_data_ptr());
  }

  static Complex<T>* complex(const at::Tensor& signals) { return data_or_null<Complex<T>>(signals); }
};

// Calls run(first, count) for `step` numbers of [0, total) at a time, in order.
template <typename Run>
void in_steps(int64_t total, int64_t step, const Run& run) {
  for (int64_t first = 0; first < total; first += step) run(first, std::min(step, total - first));
}

at::Tensor fft_conv_cuda(const FftConvArguments& arguments) {
  const auto& u = arguments.u;
  const c10::cuda::CUDAGuard guard(u.device());
  auto out = at::empty(u.sizes(), u.options());
  if (out.numel() == 0) return out;

  const auto input = readable(u), pre = readable(arguments.pre_gate), post = readable(arguments.post_gate);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, u.scalar_type(), "fft_conv", [&] {
    const Geometry geometry(arguments, 2, sizeof(accumulate_t<scalar_t>));
    const Transformer<scalar_t> fft{geometry, arguments.kernel.options()};
    in_steps(geometry.channels, geometry.channel_step, [&](int64_t first_channel, int64_t channels) {
      const auto weight = fft.kernel_spectrum(arguments, first_channel, channels);
      in_steps(geometry.batch, geometry.batch_step, [&](int64_t first, int64_t batch) {
        const Part part{first, batch, first_channel, channels};
        const auto z = fft.spectrum(input, pre, part);
        fft.product(
            {.convolve = true, .correlate = false, .reduce = false, .accumulate = false}, part, weight, z);
        fft.unpack(z, part, post, out);
      });
    });
  });
  return out;
}

Tensors<5> fft_conv_backward_cuda(const FftConvBackwardArguments& arguments) {
  const auto& forward = arguments.forward;
  const c10::cuda::CUDAGuard guard(forward.u.device());
  const FftConvGradients gradients(arguments);
  if (forward.u.numel() == 0 || !gradients.any()) return std::tuple_cat(gradients.all);

  const auto input = readable(forward.u), output = readable(arguments.grad);
  const auto pre = readable(forward.pre_gate), post = readable(forward.post_gate);
  const bool has_results = gradients.post_gate || gradients.of_z();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "fft_conv_backward", [&] {
    const int64_t buffers = 1 + gradients.needs_z() + gradients.needs_h();
    const Geometry geometry(forward, buffers, sizeof(accumulate_t<scalar_t>));
    const Transformer<scalar_t> fft{geometry, forward.kernel.options()};
    in_steps(geometry.channels, geometry.channel_step, [&](int64_t first_channel, int64_t channels) {
      at::Tensor weight, correlation;
      if (has_results) weight = fft.kernel_spectrum(forward, first_channel, channels);
      if (gradients.correlation()) correlation = fft.empty(channels);
      in_steps(geometry.batch, geometry.batch_step, [&](int64_t first, int64_t batch) {
        const Part part{first, batch, first_channel, channels};
        at::Tensor z, y;
        if (gradients.needs_z()) z = fft.spectrum(input, pre, part);
        if (gradients.needs_h()) y = fft.spectrum(output, post, part);
        fft.product(
            {gradients.post_gate, gradients.of_z(), gradients.correlation(), first > 0}, part, weight, z, y,
            correlation);
        if (gradients.of_z()) fft.unpack(y, part, pre, gradients.all[0], input, gradients.all[3]);
        if (gradients.post_gate) fft.unpack(z, part, output, gradients.all[4]);
      });
      if (!gradients.correlation()) return;
      fft.transform(correlation, false);
      gradients.store_correlation(correlation, first_channel, geometry.lags);
    });
  });
  return std::tuple_cat(gradients.all);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CUDA, m) {
  m.impl("fft_conv", detail::checked<fft_conv_cuda>);
  m.impl("fft_conv_backward", detail::checked<fft_conv_backward_cuda>);
}

}  // namespace hyenarec
