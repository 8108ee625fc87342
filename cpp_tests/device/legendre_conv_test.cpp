// legendre_conv's kernels beside the oracle: padded and packed, every number of compiled coefficients, one
// segment and several, both orders of blocks.
#include "scan_run.h"

#include "ops/legendre_conv/cuda.cuh"

namespace {

using namespace device_test;
using cuda_on_cpu::BFloat16;
using cuda_on_cpu::Half;

struct Gradients {
  std::vector<double> u, pre, post;
  ParameterGradients parameters;
  bool operator==(const Gradients&) const = default;
};

// A case's activations in scalar_t, rows `gap` elements further apart than needed, NaN between them.
template <typename scalar_t>
class Problem {
 public:
  using T = accumulate_t<scalar_t>;

  Problem(const oracle::Case& expected, int64_t gap, const std::vector<int64_t>& offsets = {})
      : expected_(expected),
        sequences_(expected, "u", offsets),
        channels_(expected["coeffs"].sizes[0]),
        stride_(static_cast<int>(channels_ + gap)),
        u_(spread("u")),
        pre_(spread("pre_gate")),
        post_(spread("post_gate")),
        grad_(spread("grad")) {}

  int64_t rows() const { return sequences_.rows; }

  template <int kN>
  std::vector<double> forward(const Cut& cut) const {
    Buffer<scalar_t> out(rows() * channels_);
    auto io = inputs();
    io.out = {out.data(), static_cast<int>(channels_)};
    Scan<T, kN>(expected_, sequences_, channels_, cut).forward(io);
    return out.values();
  }

  template <int kN>
  Gradients backward(const Cut& cut, const GradientMask& wanted) const {
    const auto size = [&](bool is_wanted) { return is_wanted ? rows() * channels_ : 0; };
    Buffer<scalar_t> u(size(wanted.input)), pre(size(wanted.input && pre_.size() > 0)),
        post(size(wanted.output && post_.size() > 0));
    auto io = inputs();
    io.grad_u = target(u);
    io.grad_pre = target(pre);
    io.grad_post = target(post);
    auto parameters = Scan<T, kN>(expected_, sequences_, channels_, cut).backward(io, wanted);
    return {u.values(), pre.values(), post.values(), parameters};
  }

 private:
  LegendreConvIO<scalar_t> inputs() const {
    return {rows_of(u_), rows_of(pre_), rows_of(post_), rows_of(grad_), {}, {}, {}, {}};
  }
  ScanRows<const scalar_t> rows_of(const Buffer<scalar_t>& buffer) const {
    return {buffer.size() > 0 ? buffer.data() : nullptr, stride_};
  }
  ScanRows<scalar_t> target(Buffer<scalar_t>& buffer) const {
    return {buffer.size() > 0 ? buffer.data() : nullptr, static_cast<int>(channels_)};
  }
  Buffer<scalar_t> spread(const char* name) const {
    if (!expected_.has(name)) return Buffer<scalar_t>(0);
    const auto& values = expected_[name].values;
    const auto count = static_cast<int64_t>(values.size()) / channels_;
    Buffer<scalar_t> buffer(count == 0 ? 0 : (count - 1) * stride_ + channels_);
    for (int64_t i = 0; i < count * channels_; ++i)
      buffer[i / channels_ * stride_ + i % channels_] = static_cast<scalar_t>(values[static_cast<size_t>(i)]);
    return buffer;
  }

  const oracle::Case& expected_;
  const Sequences sequences_;
  const int64_t channels_;
  const int stride_;
  const Buffer<scalar_t> u_, pre_, post_, grad_;
};

constexpr GradientMask kAll{true, true, true};

template <typename scalar_t>
void expect_gradients(const oracle::Case& expected, const Gradients& grads) {
  using T = accumulate_t<scalar_t>;
  expect_near(expected, "grad_u", grads.u, kTolerance<scalar_t>);
  expect_near(expected, "grad_pre_gate", grads.pre, kTolerance<scalar_t>);
  expect_near(expected, "grad_post_gate", grads.post, kTolerance<scalar_t>);
  expect_near(expected, "grad_coeffs", grads.parameters.coeffs, 2 * kTolerance<T>);
  expect_near(expected, "grad_decay", grads.parameters.decay, 5 * kTolerance<T>);
  expect_near(expected, "grad_skip", grads.parameters.skip, kTolerance<T>);
}

template <typename scalar_t, int kN>
void check(const oracle::Case& expected, bool thorough = false) {
  const Problem<scalar_t> problem(expected, thorough ? 3 : 0);
  if (problem.rows() == 0 || expected["coeffs"].sizes[1] > kN) return;
  SCOPED_TRACE(expected.name() + ", " + std::to_string(kN) + " coefficients");

  const Cut whole{};
  expect_near(expected, "out", problem.template forward<kN>(whole), kTolerance<scalar_t>);
  const auto grads = problem.template backward<kN>(whole, kAll);
  expect_gradients<scalar_t>(expected, grads);
  if (!thorough) return;

  const Cut segments{.segment_chunks = 1, .warps = 3, .most_blocks = 1, .slab = 100};
  const auto out = problem.template forward<kN>(segments);
  expect_near(expected, "out", out, kTolerance<scalar_t>);
  const auto segment_grads = problem.template backward<kN>(segments, kAll);
  expect_gradients<scalar_t>(expected, segment_grads);

  Cut descending = segments;
  descending.order = BlockOrder::descending;
  EXPECT_EQ(out, problem.template forward<kN>(descending));
  EXPECT_EQ(segment_grads, problem.template backward<kN>(descending, kAll));

  if (is_large(expected)) return;
  // One gradient at a time: the same bits.
  EXPECT_EQ(grads.u, problem.template backward<kN>(whole, {true, false, false}).u);
  EXPECT_EQ(grads.post, problem.template backward<kN>(whole, {false, true, false}).post);
  EXPECT_EQ(grads.parameters, problem.template backward<kN>(whole, {false, false, true}).parameters);
}

class LegendreConvDevice : public testing::TestWithParam<oracle::Case> {};

TEST_P(LegendreConvDevice, EqualsTheOracle) {
  const auto num_coeffs = GetParam()["coeffs"].sizes[1];
  if (num_coeffs <= 9) {
    check<float, 9>(GetParam(), true);
  } else if (num_coeffs <= 17) {
    check<float, 17>(GetParam(), true);
  } else if (num_coeffs <= 33) {
    check<float, 33>(GetParam(), true);
  } else {
    check<float, kScanMaxCoeffs>(GetParam(), true);
  }
  if (is_large(GetParam())) return;
  check<double, kScanMaxCoeffs>(GetParam());
  check<BFloat16, 17>(GetParam());
}

INSTANTIATE_TEST_SUITE_P(
    Cases, LegendreConvDevice, testing::ValuesIn(oracle::cases_of(HYENAREC_ORACLE_TABLES, "legendre_conv")),
    [](const auto& info) { return case_name(info.param); });

// What the backward sweep's warps add up together: over sequences of different lengths, with several slabs of
// moments; one block for all groups of sequences, and many blocks.
TEST(LegendreScanBackwardDevice, AddsUpOverWarps) {
  for (const auto& expected : oracle::cases_of(HYENAREC_ORACLE_TABLES, "legendre_conv")) {
    if (expected.name() != "legendre_conv.packed" && expected.name() != "legendre_conv.whole_chunks")
      continue;
    const Problem<float> problem(expected, 0);
    for (const Cut& cut : {Cut{.warps = 3, .most_blocks = 1, .slab = 2}, Cut{.warps = 1}})
      expect_gradients<float>(expected, problem.backward<9>(cut, kAll));
  }
}

// Offsets that lie about the rows (unsorted, negative, beyond the end) must not lead outside of the buffers;
// rows of a sequence beyond the horizon become NaN.
TEST(LegendreConvDeviceOffsets, BadValuesGiveNoBadAddress) {
  const auto cases = oracle::cases_of(HYENAREC_ORACLE_TABLES, "legendre_conv");
  const auto expected = std::find_if(
      cases.begin(), cases.end(), [](const auto& one) { return one.name() == "legendre_conv.packed"; });
  ASSERT_NE(expected, cases.end());
  const auto rows = (*expected)["u"].sizes[0], horizon = expected->integer("horizon");
  ASSERT_LT(horizon, rows);
  const std::vector<std::vector<int64_t>> all_bad = {
      {0, 500, 3, -7, rows}, {50, 60}, {-5, -5, -5}, {0, rows}};
  for (const auto& offsets : all_bad) {
    const Problem<float> problem(*expected, 0, offsets);
    // One warp a block: such sequences overlap, and warps that write the same row at once would be a race.
    for (const Cut& cut : {Cut{.warps = 1}, Cut{.segment_chunks = 1, .warps = 1}}) {
      const auto out = problem.forward<9>(cut);
      const auto grads = problem.backward<9>(cut, kAll);
      if (offsets.size() > 2 || offsets[0] != 0) continue;
      const auto channels = (*expected)["coeffs"].sizes[0];
      for (size_t i = 0; i < out.size(); ++i) {
        EXPECT_EQ(std::isnan(out[i]), static_cast<int64_t>(i) / channels >= horizon);
        EXPECT_EQ(std::isnan(grads.u[i]), static_cast<int64_t>(i) / channels >= horizon);
      }
    }
  }
}

}  // namespace
