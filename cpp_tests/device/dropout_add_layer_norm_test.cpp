// dropout_add_layer_norm's kernels beside the oracle: one channel or 16 bytes of them at a time, rows with
// gaps between them, rows held in registers and wider ones, branches of the sum's type and of 16 bits, both
// orders of blocks. And the random numbers themselves.
#include "device_test.h"

#include "ops/dropout_add_layer_norm/cuda.cuh"

namespace {

using namespace device_test;
using namespace hyenarec;
using cuda_on_cpu::BFloat16;
using cuda_on_cpu::Half;

struct Solution {
  std::vector<double> out, branch, residual, weight, bias;  // out is both outputs, the others are gradients
  bool operator==(const Solution&) const = default;
};

// Rows `stride` apart, the last without a gap; NaN between them.
template <typename scalar_t>
Buffer<scalar_t> spread(const double* values, int64_t count, int64_t channels, int64_t stride) {
  Buffer<scalar_t> buffer((count - 1) * stride + channels);
  for (int64_t i = 0; i < count * channels; ++i)
    buffer[i / channels * stride + i % channels] = static_cast<scalar_t>(values[i]);
  return buffer;
}

// `run`: rows that a team of the backward kernel goes over.
template <typename branch_t, typename sum_t, int kVector, int kHeld>
Solution solve(const oracle::Case& expected, int64_t run, BlockOrder order) {
  using T = accumulate_t<sum_t>;
  const int64_t channels = expected["weight"].sizes[0], stride = channels + kVector;
  const auto size = static_cast<int64_t>(expected["branch"].values.size()), count = size / channels;
  const auto branch = spread<branch_t>(expected["branch"].values.data(), count, channels, stride);
  const bool has_residual = expected.has("residual"), has_seed = expected.has("seed");
  const auto residual =
      spread<sum_t>(expected[has_residual ? "residual" : "branch"].values.data(), count, channels, stride);
  const Buffer<T> weight(expected["weight"].values), bias(expected["bias"].values);
  const int64_t seed = has_seed ? expected.integer("seed") : 0;
  const double p = expected["p"].values[0];
  NormDropout<T> dropout{};
  if (has_seed) {
    dropout = {&seed, static_cast<uint32_t>(p * kNumLevels), p == 1 ? T(0) : static_cast<T>(1 / (1 - p))};
  }

  Buffer<sum_t> normed(size), sum(size), grad_residual(size);
  Buffer<T> mean(count), rstd(count);
  const NormRows<sum_t> residual_rows{has_residual ? residual.data() : nullptr, stride};
  const auto eps = static_cast<T>(expected["eps"].values[0]);
  launch(
      norm_shape(count, channels, kVector, kHeld, 1, sizeof(T)).launch, order,
      dropout_add_layer_norm_forward<branch_t, sum_t, kVector, kHeld>,
      NormForward<branch_t, sum_t>{
          count, channels, NormRows<branch_t>{branch.data(), stride}, residual_rows, weight.data(),
          bias.data(), eps, dropout, normed.data(), sum.data(), mean.data(), rstd.data()});

  const double* grads = expected["grad"].values.data();
  const auto grad_normed = spread<sum_t>(grads, count, channels, stride);
  const auto grad_sum = spread<sum_t>(grads + size, count, channels, stride);
  const auto shape = norm_shape(count, channels, kVector, kHeld, run, sizeof(T));
  Buffer<branch_t> grad_branch(size);
  Buffer<T> partial(std::vector<double>(static_cast<size_t>(shape.groups * 2 * channels), 0));
  launch(
      shape.launch, order, dropout_add_layer_norm_backward<branch_t, sum_t, kVector, kHeld>,
      NormBackward<branch_t, sum_t>{
          count, channels, shape.run, NormRows<sum_t>{grad_normed.data(), stride},
          NormRows<sum_t>{grad_sum.data(), stride}, NormRows<sum_t>{sum.data(), channels}, mean.data(),
          rstd.data(), weight.data(), dropout, grad_branch.data(), grad_residual.data(), partial.data()});
  const auto sums = sum_over_groups(partial, shape.groups);  // [2, channels]
  Solution solution{
      normed.values(),
      grad_branch.values(),
      grad_residual.values(),
      {sums.begin(), sums.begin() + channels},
      {sums.begin() + channels, sums.end()}};
  const auto summed = sum.values();
  solution.out.insert(solution.out.end(), summed.begin(), summed.end());
  return solution;
}

template <typename branch_t, typename sum_t, int kVector, int kHeld = kNormHeld / kVector>
void check(const oracle::Case& expected) {
  if (expected["weight"].sizes[0] % kVector != 0) return;
  SCOPED_TRACE(expected.name() + ", " + std::to_string(kVector) + " channels, " + std::to_string(kHeld));
  const auto solution = solve<branch_t, sum_t, kVector, kHeld>(expected, 0, BlockOrder::ascending);
  // A row's few numbers cancel, and the 16-bit gradients also carry the rounding of the sum.
  constexpr double kSums = 4 * kTolerance<sum_t>;
  EXPECT_LT(relative_error(solution.out, expected["out"].values), kSums);
  EXPECT_LT(
      relative_error(solution.branch, expected["grad_branch"].values), std::max(kSums, kTolerance<branch_t>));
  if (expected.has("residual")) {
    EXPECT_LT(relative_error(solution.residual, expected["grad_residual"].values), kSums);
  }
  EXPECT_LT(relative_error(solution.weight, expected["grad_weight"].values), kSums);
  EXPECT_LT(relative_error(solution.bias, expected["grad_bias"].values), kSums);
  if (!std::is_same_v<branch_t, float>) return;
  EXPECT_EQ(solution, (solve<branch_t, sum_t, kVector, kHeld>(expected, 0, BlockOrder::descending)));
  // Short runs: the second stage adds many groups.
  const auto in_runs = solve<branch_t, sum_t, kVector, kHeld>(expected, 1, BlockOrder::ascending);
  EXPECT_LT(relative_error(in_runs.weight, expected["grad_weight"].values), kSums);
  EXPECT_EQ(in_runs.branch, solution.branch);
}

class DropoutAddLayerNormDevice : public testing::TestWithParam<oracle::Case> {};

TEST_P(DropoutAddLayerNormDevice, EqualsTheOracle) {
  if (GetParam()["branch"].values.empty()) return;  // the launcher returns before
  check<float, float, 1>(GetParam());
  check<float, float, 4>(GetParam());
  check<float, float, 1, 1>(GetParam());  // the widest rows don't fit into a team's registers
  check<double, double, 2>(GetParam());
  check<BFloat16, BFloat16, 8>(GetParam());
  check<Half, Half, 8>(GetParam());
  check<BFloat16, float, 4>(GetParam());
  check<Half, float, 1>(GetParam());
}

INSTANTIATE_TEST_SUITE_P(
    Cases, DropoutAddLayerNormDevice,
    testing::ValuesIn(oracle::cases_of(HYENAREC_ORACLE_TABLES, "dropout_add_layer_norm")),
    [](const auto& info) { return case_name(info.param); });

// Of an output that nobody used no gradient comes, and of an argument none may be wanted.
TEST(DropoutAddLayerNormDeviceGradients, MayBeAbsent) {
  constexpr int64_t kRows = 5, kChannels = 8;
  const int64_t seed = 7;
  const Buffer<float> grad(std::vector<double>(kRows * kChannels, 1));
  const Buffer<float> sum(std::vector<double>(kRows * kChannels, 2)), ones(std::vector<double>(kChannels, 1));
  Buffer<float> grad_branch(kRows * kChannels), grad_residual(kRows * kChannels);
  const auto shape = norm_shape(kRows, kChannels, 4, 4, 0, sizeof(float));
  NormBackward<float, float> rows{};
  rows.rows = kRows;
  rows.channels = kChannels;
  rows.run = shape.run;
  rows.grad_sum = {grad.data(), kChannels};
  rows.sum = {sum.data(), kChannels};
  rows.mean = rows.rstd = rows.weight = ones.data();
  rows.dropout = {&seed, kNumLevels / 2, 2};
  rows.grad_branch = grad_branch.data();
  launch(shape.launch, BlockOrder::ascending, dropout_add_layer_norm_backward<float, float, 4, 4>, rows);
  rows.grad_branch = nullptr;
  rows.grad_residual = grad_residual.data();
  launch(shape.launch, BlockOrder::ascending, dropout_add_layer_norm_backward<float, float, 4, 4>, rows);
  for (int64_t i = 0; i < kRows * kChannels; ++i) {
    const bool dropped = level_in(random_block(7, i / kLevelsPerBlock), i) < kNumLevels / 2;
    EXPECT_EQ(grad_branch[i], dropped ? 0 : 2);
    EXPECT_EQ(grad_residual[i], 1);
  }
}

// Random123's kat_vectors.
TEST(PhiloxDevice, GivesTheKnownAnswers) {
  const auto expect = [](PhiloxBlock counter, uint32_t key0, uint32_t key1, PhiloxBlock expected) {
    const PhiloxBlock block = philox(counter, key0, key1);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(block.word[i], expected.word[i]);
  };
  expect({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  expect(
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, 0xffffffff, 0xffffffff,
      {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect(
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
      {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

}  // namespace
