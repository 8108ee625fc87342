// hyena_mixer's kernels beside the oracle: padded and packed, four and eight taps, one segment and several,
// both orders of blocks.
#include "scan_run.h"

#include "ops/hyena_mixer/cuda.cuh"
#include "ops/legendre_conv/cuda.cuh"

namespace {

using namespace device_test;
using cuda_on_cpu::BFloat16;

struct Gradients {
  std::vector<double> x, weight, bias;
  ParameterGradients parameters;
  bool operator==(const Gradients&) const = default;
};

template <typename scalar_t, int kN, int kTaps>
class Problem {
 public:
  using T = accumulate_t<scalar_t>;
  using IO = HyenaMixerIO<scalar_t, kTaps>;

  explicit Problem(const oracle::Case& expected)
      : expected_(expected),
        sequences_(expected, "x"),
        channels_(expected["coeffs"].sizes[0]),
        width_(static_cast<int>(expected["short_weight"].sizes[1])),
        x_(expected["x"].values),
        grad_(expected["grad"].values),
        weight_(expected["short_weight"].values),
        bias_(expected.has("short_bias") ? expected["short_bias"].values : std::vector<double>()) {}

  bool applies() const {
    return sequences_.rows > 0 && width_ <= kTaps && expected_["coeffs"].sizes[1] <= kN;
  }

  std::vector<double> forward(const Cut& cut) const {
    Buffer<scalar_t> out(sequences_.rows * channels_);
    auto io = inputs();
    io.out = {out.data(), static_cast<int>(channels_)};
    Scan<T, kN>(expected_, sequences_, channels_, cut).forward(io);
    return out.values();
  }

  Gradients backward(const Cut& cut, const GradientMask& wanted) const {
    Scan<T, kN> scan(expected_, sequences_, channels_, cut);
    Buffer<scalar_t> x(wanted.input ? x_.size() : 0);
    Buffer<T> edges(scan.segment_slots() * 6 * IO::kHalo * scan.pitch());
    auto io = inputs();
    io.grad_x = {wanted.input ? x.data() : nullptr, static_cast<int>(3 * channels_)};
    io.edges = edges.data();
    io.edge_pitch = scan.pitch();
    const auto parameters = scan.backward(io, wanted);
    if (scan.work().segments > 1 && wanted.input)
      launch(
          scan_shape(scan.work(), cut.warps), cut.order, hyena_mixer_join<scalar_t, kTaps>, scan.work(), io);
    Gradients grads{x.values(), {}, {}, parameters};
    if (!wanted.parameters) return grads;
    const auto& sums = parameters.io_sums;  // [3, kTaps + 1, channels]
    for (int64_t column = 0; column < 3 * channels_; ++column) {
      const auto row = [&](int64_t tap) {
        return static_cast<size_t>((column / channels_ * (kTaps + 1) + tap) * channels_ + column % channels_);
      };
      for (int lag = 0; lag < width_; ++lag) grads.weight.push_back(sums[row(lag)]);
      grads.bias.push_back(sums[row(kTaps)]);
    }
    return grads;
  }

 private:
  IO inputs() const {
    IO io{};
    io.x = {x_.data(), static_cast<int>(3 * channels_)};
    io.grad = {grad_.data(), static_cast<int>(channels_)};
    io.weight = weight_.data();
    io.bias = bias_.size() > 0 ? bias_.data() : nullptr;
    io.width = width_;
    io.channels = channels_;
    return io;
  }

  const oracle::Case& expected_;
  const Sequences sequences_;
  const int64_t channels_;
  const int width_;
  const Buffer<scalar_t> x_, grad_;
  const Buffer<T> weight_, bias_;
};

constexpr GradientMask kAll{true, true, true};

template <typename scalar_t>
void expect_gradients(const oracle::Case& expected, const Gradients& grads) {
  using T = accumulate_t<scalar_t>;
  expect_near(expected, "grad_x", grads.x, kTolerance<scalar_t>);
  expect_near(expected, "grad_short_weight", grads.weight, 2 * kTolerance<T>);
  expect_near(expected, "grad_short_bias", grads.bias, 2 * kTolerance<T>);
  expect_near(expected, "grad_coeffs", grads.parameters.coeffs, 2 * kTolerance<T>);
  expect_near(expected, "grad_decay", grads.parameters.decay, 5 * kTolerance<T>);
  expect_near(expected, "grad_skip", grads.parameters.skip, 2 * kTolerance<T>);
}

template <typename scalar_t, int kN, int kTaps>
void check(const oracle::Case& expected, bool thorough = false) {
  const Problem<scalar_t, kN, kTaps> problem(expected);
  if (!problem.applies()) return;
  SCOPED_TRACE(
      expected.name() + ", " + std::to_string(kN) + " coefficients, " + std::to_string(kTaps) + " taps");
  const Cut whole{};
  expect_near(expected, "out", problem.forward(whole), kTolerance<scalar_t>);
  const auto grads = problem.backward(whole, kAll);
  expect_gradients<scalar_t>(expected, grads);
  if (!thorough) return;

  Cut segments{.segment_chunks = 1, .warps = 3, .most_blocks = 1, .slab = 100};
  const auto out = problem.forward(segments);
  expect_near(expected, "out", out, kTolerance<scalar_t>);
  const auto segment_grads = problem.backward(segments, kAll);
  expect_gradients<scalar_t>(expected, segment_grads);

  segments.order = BlockOrder::descending;
  EXPECT_EQ(out, problem.forward(segments));
  EXPECT_EQ(segment_grads, problem.backward(segments, kAll));
}

class HyenaMixerDevice : public testing::TestWithParam<oracle::Case> {};

TEST_P(HyenaMixerDevice, EqualsTheOracle) {
  if (GetParam()["coeffs"].sizes[1] <= 17) {
    check<float, 17, 4>(GetParam(), true);
  } else {
    check<float, 33, 4>(GetParam(), true);
  }
  if (is_large(GetParam())) return;
  check<BFloat16, 17, 4>(GetParam());
  check<float, kScanMaxCoeffs, 8>(GetParam(), GetParam()["short_weight"].sizes[1] > 4);
  check<double, kScanMaxCoeffs, 8>(GetParam());
}

INSTANTIATE_TEST_SUITE_P(
    Cases, HyenaMixerDevice, testing::ValuesIn(oracle::cases_of(HYENAREC_ORACLE_TABLES, "hyena_mixer")),
    [](const auto& info) { return case_name(info.param); });

// What the blocks of the backward sweep ask for: at most what one gets on every GPU since Ampere (99 KiB on
// 8.6 and 8.9), whatever the number of coefficients; and as many warps as have been asked for where that is
// fast.
template <typename IO>
void check_shared_memory() {
  using T = typename IO::T;
  const ScanWork work{1000, 100, 100, nullptr, 10, 64, 4, 1, 1};
  for (int64_t n = 1; n <= kScanMaxCoeffs; ++n) {
    const auto shape = scan_backward_shape<IO>(work, n, 4, n, 1000);
    EXPECT_LE(shape.launch.shared_bytes, size_t{99 * 1024}) << n << " coefficients";
    EXPECT_GE(shape.slab, 1);
    const auto warps = static_cast<int64_t>(shape.launch.threads.y);
    if (n <= kScanUnrolledCoeffs && sizeof(T) == sizeof(float)) {
      EXPECT_EQ(warps, 4) << n << " coefficients";
    }
    // All that the kernel lays out in it.
    const int64_t numbers =
        kScanTapRows + warps * (kScanTimeSums<IO> + 2 * n) + (warps > 1 ? shape.slab * n : 0);
    EXPECT_EQ(shape.launch.shared_bytes, static_cast<size_t>(numbers * kScanLanes) * sizeof(T));
  }
}

TEST(LegendreScanBackwardDevice, FitsTheSharedMemoryOfEveryGpu) {
  check_shared_memory<LegendreConvIO<float>>();
  check_shared_memory<LegendreConvIO<double>>();
  check_shared_memory<HyenaMixerIO<BFloat16, 4>>();
  check_shared_memory<HyenaMixerIO<double, 8>>();
}

}  // namespace
