// short_conv's kernels beside the oracle: padded and packed, one channel or 16 bytes of them at a time, rows
// with gaps between them, both orders of blocks.
#include "device_test.h"

#include "ops/short_conv/cuda.cuh"

namespace {

using namespace device_test;
using namespace hyenarec;
using cuda_on_cpu::BFloat16;
using cuda_on_cpu::Half;

// A case's arguments for the kernels, activations in scalar_t, rows `gap` elements further apart than needed.
template <typename scalar_t>
struct Inputs {
  using T = accumulate_t<scalar_t>;

  Inputs(const oracle::Case& expected, int64_t gap)
      : channels(expected["u"].sizes.back()),
        width(static_cast<int>(expected["weight"].sizes[1])),
        stride(channels + gap),
        u(spread(expected["u"].values)),
        grad(spread(expected["grad"].values)),
        weight(expected["weight"].values),
        bias(expected.has("bias") ? expected["bias"].values : std::vector<double>()),
        has_bias(expected.has("bias")) {
    const auto& sizes = expected["u"].sizes;
    if (expected.has("offsets")) {
      offsets = expected["offsets"].as<int64_t>();
      rows = {sizes[0], 0, offsets.data(), static_cast<int64_t>(offsets.size()) - 1};
    } else {
      rows = {sizes[0] * sizes[1], sizes[1], nullptr, 0};
    }
  }

  // Rows `stride` apart, the last without a gap; NaN between them.
  Buffer<scalar_t> spread(const std::vector<double>& values) const {
    const auto count = static_cast<int64_t>(values.size()) / channels;
    Buffer<scalar_t> buffer(count == 0 ? 0 : (count - 1) * stride + channels);
    for (int64_t i = 0; i < count * channels; ++i)
      buffer[i / channels * stride + i % channels] = static_cast<scalar_t>(values[static_cast<size_t>(i)]);
    return buffer;
  }

  int64_t channels;
  int width;
  int64_t stride;
  Buffer<scalar_t> u, grad;
  Buffer<T> weight, bias;
  bool has_bias;
  std::vector<int64_t> offsets;
  SequenceRows rows;
};

template <typename scalar_t, int kVector, int kTaps>
std::vector<double> forward(const Inputs<scalar_t>& in, int64_t run, BlockOrder order) {
  Buffer<scalar_t> out(in.rows.rows * in.channels);
  const auto shape = short_conv_shape(in.rows.rows, in.channels, kVector, run, 0);
  launch(
      shape.launch, order, short_conv_forward<scalar_t, kVector, kTaps>, in.rows, in.channels, in.width,
      shape.channel_tiles, shape.run, in.u.data(), in.stride, in.weight.data(),
      in.has_bias ? in.bias.data() : nullptr, out.data());
  return out.values();
}

struct Gradients {
  std::vector<double> u, weight, bias;
  bool operator==(const Gradients&) const = default;
};

template <typename scalar_t, int kVector, int kTaps>
Gradients backward(const Inputs<scalar_t>& in, int64_t run, BlockOrder order) {
  using T = accumulate_t<scalar_t>;
  const auto shape = short_conv_shape(in.rows.rows, in.channels, kVector, run, sizeof(T));
  Buffer<scalar_t> grad_u(in.rows.rows * in.channels);
  Buffer<T> partial(shape.groups * (in.width + 1) * in.channels);
  launch(
      shape.launch, order, short_conv_backward<scalar_t, kVector, kTaps>, in.rows, in.channels, in.width,
      shape.channel_tiles, shape.run, in.grad.data(), in.stride, in.u.data(), in.stride, in.weight.data(),
      grad_u.data(), partial.data());
  const auto sums = sum_over_groups(partial, shape.groups);  // [width + 1, channels]
  std::vector<double> grad_weight;
  for (int64_t d = 0; d < in.channels; ++d) {
    for (int64_t lag = 0; lag < in.width; ++lag)
      grad_weight.push_back(sums[static_cast<size_t>(lag * in.channels + d)]);
  }
  return {grad_u.values(), grad_weight, {sums.end() - in.channels, sums.end()}};
}

template <typename scalar_t, int kVector, int kTaps>
void check(const oracle::Case& expected) {
  using T = accumulate_t<scalar_t>;
  const Inputs<scalar_t> in(expected, kVector);
  if (in.rows.rows == 0) return;  // the launcher returns before
  if (in.width > kTaps || in.channels % kVector != 0) return;
  SCOPED_TRACE(
      expected.name() + ", " + std::to_string(kVector) + " channels, " + std::to_string(kTaps) + " taps");

  const auto out = forward<scalar_t, kVector, kTaps>(in, 5, BlockOrder::ascending);
  EXPECT_LT(relative_error(out, expected["out"].values), kTolerance<scalar_t>);
  const bool thorough = std::is_same_v<scalar_t, float> && !is_large(expected);  // else the code is the same
  if (thorough) {
    EXPECT_EQ(out, (forward<scalar_t, kVector, kTaps>(in, 5, BlockOrder::descending)));
  }

  const auto grads = backward<scalar_t, kVector, kTaps>(in, 0, BlockOrder::ascending);
  EXPECT_LT(relative_error(grads.u, expected["grad_u"].values), kTolerance<scalar_t>);
  EXPECT_LT(relative_error(grads.weight, expected["grad_weight"].values), kTolerance<T>);
  if (in.has_bias) {
    EXPECT_LT(relative_error(grads.bias, expected["grad_bias"].values), kTolerance<T>);
  }
  if (!thorough) return;
  EXPECT_EQ(grads, (backward<scalar_t, kVector, kTaps>(in, 0, BlockOrder::descending)));

  // Many short runs: each has a halo, and the second stage adds many groups.
  const auto in_runs = backward<scalar_t, kVector, kTaps>(in, 2, BlockOrder::ascending);
  EXPECT_LT(relative_error(in_runs.u, expected["grad_u"].values), kTolerance<scalar_t>);
  EXPECT_LT(relative_error(in_runs.weight, expected["grad_weight"].values), kTolerance<T>);
}

class ShortConvDevice : public testing::TestWithParam<oracle::Case> {};

TEST_P(ShortConvDevice, EqualsTheOracle) {
  check<float, 1, 4>(GetParam());
  if (is_large(GetParam())) return;
  check<float, 1, 8>(GetParam());
  check<float, 4, 4>(GetParam());
  check<float, 4, 8>(GetParam());
  check<double, 2, 8>(GetParam());
  check<BFloat16, 8, 4>(GetParam());
  check<BFloat16, 1, 8>(GetParam());
  check<Half, 8, 8>(GetParam());
}

INSTANTIATE_TEST_SUITE_P(
    Cases, ShortConvDevice, testing::ValuesIn(oracle::cases_of(HYENAREC_ORACLE_TABLES, "short_conv")),
    [](const auto& info) { return case_name(info.param); });

// Offsets that lie about the rows (unsorted, negative, beyond the end) must not lead outside of the buffers.
TEST(ShortConvDeviceOffsets, BadValuesGiveNoBadAddress) {
  const std::vector<std::vector<int64_t>> all_bad = {{0, 90, 3, -7, 20}, {50, 60}, {-5, -5, -5}, {0, 10}};
  for (const auto& offsets : all_bad) {
    const SequenceRows rows{20, 0, offsets.data(), static_cast<int64_t>(offsets.size()) - 1};
    Buffer<float> u(20 * 4), weight(4 * 3), out(20 * 4);
    const auto shape = short_conv_shape(20, 4, 4, 5, 0);
    launch(
        shape.launch, BlockOrder::ascending, short_conv_forward<float, 4, 4>, rows, int64_t{4}, 3,
        shape.channel_tiles, shape.run, u.data(), int64_t{4}, weight.data(),
        static_cast<const float*>(nullptr), out.data());
  }
}

}  // namespace
