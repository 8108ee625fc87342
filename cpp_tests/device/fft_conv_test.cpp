// fft_conv's kernels beside the oracle: the whole chain forward and backward, with a plain discrete Fourier
// transform in cuFFT's place (same layout, same missing factor 1/n), cut into parts of the batch and of the
// channels.
#include "device_test.h"

#include <numbers>

#include "ops/fft_conv/cuda.cuh"

namespace {

using namespace device_test;
using namespace hyenarec;
using cuda_on_cpu::BFloat16;
using cuda_on_cpu::Half;

// In place, as the plans of cufft_plan.h: each signal `size` reals, or size / 2 + 1 complex numbers.
template <typename T>
void transform(Buffer<T>& signals, int64_t size, bool forward) {
  const int64_t pitch = signal_pitch(size), frequencies = spectrum_size(size);
  std::vector<double> cosine(static_cast<size_t>(size)), sine(cosine);
  for (int64_t i = 0; i < size; ++i) {
    const double angle = 2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(size);
    cosine[static_cast<size_t>(i)] = std::cos(angle);
    sine[static_cast<size_t>(i)] = std::sin(angle);
  }
  std::vector<double> in(static_cast<size_t>(pitch));
  for (int64_t first = 0; first < signals.size(); first += pitch) {
    for (int64_t i = 0; i < pitch; ++i) in[static_cast<size_t>(i)] = static_cast<double>(signals[first + i]);
    if (forward) {
      for (int64_t f = 0; f < frequencies; ++f) {
        double real = 0, imag = 0;
        for (int64_t t = 0; t < size; ++t) {
          const auto turn = static_cast<size_t>(f * t % size);
          real += in[static_cast<size_t>(t)] * cosine[turn];
          imag -= in[static_cast<size_t>(t)] * sine[turn];
        }
        signals[first + 2 * f] = static_cast<T>(real);
        signals[first + 2 * f + 1] = static_cast<T>(imag);
      }
    } else {
      for (int64_t t = 0; t < size; ++t) {
        double sum = in[0];
        for (int64_t f = 1; f < frequencies; ++f) {
          const auto turn = static_cast<size_t>(f * t % size);
          const double twice = 2 * f == size ? 1 : 2;  // the conjugate half is not stored
          sum += twice * (in[static_cast<size_t>(2 * f)] * cosine[turn] -
                          in[static_cast<size_t>(2 * f + 1)] * sine[turn]);
        }
        signals[first + t] = static_cast<T>(sum);
      }
    }
  }
}

template <typename scalar_t>
struct Inputs {
  using T = accumulate_t<scalar_t>;

  explicit Inputs(const oracle::Case& expected)
      : batch(expected["u"].sizes[0]),
        length(expected["u"].sizes[1]),
        channels(expected["u"].sizes[2]),
        all_lags(expected["kernel"].sizes[1]),
        lags(fft_conv_lags(length, all_lags)),
        size(std::max<int64_t>(fft_conv_size(length, all_lags), 2)),
        u(expected["u"].values),
        grad(expected["grad"].values),
        pre_gate(optional(expected, "pre_gate")),
        post_gate(optional(expected, "post_gate")),
        kernel(expected["kernel"].values),
        skip(optional(expected, "skip")) {}

  static std::vector<double> optional(const oracle::Case& expected, const std::string& name) {
    return expected.has(name) ? expected[name].values : std::vector<double>();
  }

  int64_t batch, length, channels, all_lags, lags, size;
  Buffer<scalar_t> u, grad, pre_gate, post_gate;
  std::vector<double> kernel, skip;
};

// A part of the batch and of the channels, as fft_conv cuts them.
struct Part {
  int64_t first_batch, batch, first_channel, channels;
};

// The steps of fft_conv for one part.
template <typename scalar_t>
class Steps {
 public:
  using T = accumulate_t<scalar_t>;
  Steps(const Inputs<scalar_t>& in, BlockOrder order)
      : in_(in), order_(order), pitch_(signal_pitch(in.size)) {}

  Activation<const scalar_t> source(const Buffer<scalar_t>& tensor, const Part& part) const {
    if (tensor.size() == 0) return {nullptr, 0, 0};
    return {tensor.data() + offset(part), in_.length * in_.channels, in_.channels};
  }
  Activation<scalar_t> target(Buffer<scalar_t>& tensor, const Part& part) const {
    if (tensor.size() == 0) return {nullptr, 0, 0};
    return {tensor.data() + offset(part), in_.length * in_.channels, in_.channels};
  }

  Buffer<T> kernel_spectrum(const Part& part) const {
    Buffer<T> signal(std::vector<double>(static_cast<size_t>(part.channels * pitch_), 0.0));
    for (int64_t c = 0; c < part.channels; ++c) {
      const int64_t channel = part.first_channel + c;
      for (int64_t lag = 0; lag < in_.lags; ++lag)
        signal[c * pitch_ + lag] =
            static_cast<T>(in_.kernel[static_cast<size_t>(channel * in_.all_lags + lag)]);
      if (!in_.skip.empty()) signal[c * pitch_] += static_cast<T>(in_.skip[static_cast<size_t>(channel)]);
    }
    transform(signal, in_.size, true);
    return signal;
  }

  Buffer<T> spectrum(const Buffer<scalar_t>& input, const Buffer<scalar_t>& gate, const Part& part) const {
    Buffer<T> signal(part.batch * part.channels * pitch_);
    launch(
        transpose_shape<T>(part.batch, part.channels, in_.size), order_, fft_conv_pack<scalar_t>,
        part.channels, in_.length, in_.size, pitch_, source(input, part), source(gate, part), signal.data());
    transform(signal, in_.size, true);
    return signal;
  }

  void product(
      const SpectralProducts& wanted, const Part& part, const Buffer<T>& kernel, Buffer<T>* z, Buffer<T>* y,
      Buffer<T>* grad_kernel) const {
    launch(
        product_shape<T>(part.batch, part.channels, spectrum_size(in_.size)), order_, fft_conv_product<T>,
        part.batch, part.channels, spectrum_size(in_.size),
        static_cast<T>(1.0 / static_cast<double>(in_.size)), wanted,
        reinterpret_cast<const Complex<T>*>(kernel.data()), complex(z), complex(y), complex(grad_kernel));
  }

  void unpack(
      Buffer<T>& signal, const Part& part, const Buffer<scalar_t>& factor, Buffer<scalar_t>& out,
      const Buffer<scalar_t>& second_factor, Buffer<scalar_t>& second_out) const {
    transform(signal, in_.size, false);
    launch(
        transpose_shape<T>(part.batch, part.channels, in_.length), order_, fft_conv_unpack<scalar_t>,
        part.channels, in_.length, pitch_, signal.data(), source(factor, part), target(out, part),
        source(second_factor, part), target(second_out, part));
  }

 private:
  int64_t offset(const Part& part) const {
    return part.first_batch * in_.length * in_.channels + part.first_channel;
  }
  static Complex<T>* complex(Buffer<T>* signals) {
    return signals == nullptr ? nullptr : reinterpret_cast<Complex<T>*>(signals->data());
  }

  const Inputs<scalar_t>& in_;
  const BlockOrder order_;
  const int64_t pitch_;
};

struct Results {
  std::vector<double> out, u, kernel, skip, pre_gate, post_gate;
  bool operator==(const Results&) const = default;
};

template <typename scalar_t>
Results run(const Inputs<scalar_t>& in, int64_t batch_step, int64_t channel_step, BlockOrder order) {
  using T = accumulate_t<scalar_t>;
  const Steps<scalar_t> steps(in, order);
  const int64_t pitch = signal_pitch(in.size);
  const Buffer<scalar_t> none(0);
  Buffer<scalar_t> no_target(0);
  Buffer<scalar_t> out(in.u.size()), grad_u(in.u.size()), grad_pre(in.pre_gate.size()),
      grad_post(in.post_gate.size());
  std::vector<double> grad_kernel(in.kernel.size(), 0.0), grad_skip(in.skip.size());

  for (int64_t channel = 0; channel < in.channels; channel += channel_step) {
    const int64_t channels = std::min(channel_step, in.channels - channel);
    Buffer<T> grad_weight(channels * pitch);
    for (int64_t first = 0; first < in.batch; first += batch_step) {
      const Part part{first, std::min(batch_step, in.batch - first), channel, channels};
      const auto weight = steps.kernel_spectrum(part);
      auto z = steps.spectrum(in.u, in.pre_gate, part);
      steps.product({true, false, false, false}, part, weight, &z, nullptr, nullptr);
      steps.unpack(z, part, in.post_gate, out, none, no_target);

      const bool post = in.post_gate.size() > 0;
      auto input = steps.spectrum(in.u, in.pre_gate, part);
      auto output = steps.spectrum(in.grad, in.post_gate, part);
      steps.product({post, true, true, first > 0}, part, weight, &input, &output, &grad_weight);
      steps.unpack(output, part, in.pre_gate, grad_u, in.u, grad_pre);
      if (post) steps.unpack(input, part, in.grad, grad_post, none, no_target);
    }
    transform(grad_weight, in.size, false);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t lag = 0; lag < in.lags; ++lag)
        grad_kernel[static_cast<size_t>((channel + c) * in.all_lags + lag)] =
            static_cast<double>(grad_weight[c * pitch + lag]);
      if (!in.skip.empty())
        grad_skip[static_cast<size_t>(channel + c)] = static_cast<double>(grad_weight[c * pitch]);
    }
  }
  return {out.values(), grad_u.values(), grad_kernel, grad_skip, grad_pre.values(), grad_post.values()};
}

template <typename scalar_t>
void check(const oracle::Case& expected) {
  using T = accumulate_t<scalar_t>;
  const Inputs<scalar_t> in(expected);
  if (in.u.size() == 0) return;  // the launcher returns before
  SCOPED_TRACE(expected.name());

  const auto verify = [&](const Results& results) {
    EXPECT_LT(relative_error(results.out, expected["out"].values), kTolerance<scalar_t>);
    EXPECT_LT(relative_error(results.u, expected["grad_u"].values), kTolerance<scalar_t>);
    EXPECT_LT(relative_error(results.kernel, expected["grad_kernel"].values), kTolerance<T>);
    if (expected.has("skip")) {
      EXPECT_LT(relative_error(results.skip, expected["grad_skip"].values), kTolerance<T>);
    }
    if (expected.has("pre_gate")) {
      EXPECT_LT(relative_error(results.pre_gate, expected["grad_pre_gate"].values), kTolerance<scalar_t>);
    }
    if (expected.has("post_gate")) {
      EXPECT_LT(relative_error(results.post_gate, expected["grad_post_gate"].values), kTolerance<scalar_t>);
    }
  };
  const auto whole = run(in, in.batch, in.channels, BlockOrder::ascending);
  verify(whole);
  if (!std::is_same_v<scalar_t, float> || is_large(expected)) return;  // once is enough: the code is the same
  EXPECT_EQ(whole, run(in, in.batch, in.channels, BlockOrder::descending));
  verify(run(in, 1, ceil_div(in.channels, 2), BlockOrder::ascending));
}

class FftConvDevice : public testing::TestWithParam<oracle::Case> {};

TEST_P(FftConvDevice, EqualsTheOracle) {
  check<float>(GetParam());
  if (is_large(GetParam())) return;
  check<double>(GetParam());
  check<BFloat16>(GetParam());
  check<Half>(GetParam());
}

INSTANTIATE_TEST_SUITE_P(
    Cases, FftConvDevice, testing::ValuesIn(oracle::cases_of(HYENAREC_ORACLE_TABLES, "fft_conv")),
    [](const auto& info) { return case_name(info.param); });

}  // namespace
