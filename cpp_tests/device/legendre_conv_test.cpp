// legendre_conv's kernels beside the oracle: padded and packed, every number of compiled coefficients, one
// segment and several, both orders of blocks.
#include "scan_run.h"

#include "ops/cuda/legendre_conv.cuh"

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

  Problem(const oracle::Case& expected, int64_t gap)
      : expected_(expected),
        sequences_(expected, "u"),
        channels_(expected["coeffs"].sizes[0]),
        stride_(channels_ + gap),
        u_(spread("u")),
        pre_(spread("pre_gate")),
        post_(spread("post_gate")),
        grad_(spread("grad")) {}

  int64_t rows() const { return sequences_.rows; }

  template <int kN>
  std::vector<double> forward(const Cut& cut) const {
    Buffer<scalar_t> out(rows() * channels_);
    auto source = inputs();
    source.out = {out.data(), channels_};
    Scan<T, kN>(expected_, sequences_, channels_, cut).forward(source);
    return out.values();
  }

  template <int kN>
  Gradients backward(const Cut& cut, const ScanWanted& wanted) const {
    const auto size = [&](bool is_wanted) { return is_wanted ? rows() * channels_ : 0; };
    Buffer<scalar_t> u(size(wanted.input)), pre(size(wanted.input && pre_.size() > 0)),
        post(size(wanted.output && post_.size() > 0));
    auto source = inputs();
    source.grad_u = target(u);
    source.grad_pre = target(pre);
    source.grad_post = target(post);
    auto parameters = Scan<T, kN>(expected_, sequences_, channels_, cut).backward(source, wanted);
    return {u.values(), pre.values(), post.values(), parameters};
  }

 private:
  ConvSource<scalar_t> inputs() const {
    return {rows_of(u_), rows_of(pre_), rows_of(post_), rows_of(grad_), {}, {}, {}, {}};
  }
  ScanRows<const scalar_t> rows_of(const Buffer<scalar_t>& buffer) const {
    return {buffer.size() > 0 ? buffer.data() : nullptr, stride_};
  }
  ScanRows<scalar_t> target(Buffer<scalar_t>& buffer) const {
    return {buffer.size() > 0 ? buffer.data() : nullptr, channels_};
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
  const int64_t channels_, stride_;
  const Buffer<scalar_t> u_, pre_, post_, grad_;
};

constexpr ScanWanted kAll{true, true, true};

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

  const Cut segments{.segment_chunks = 1, .warps = 3, .row_groups = 1, .slab = 100};
  const auto out = problem.template forward<kN>(segments);
  expect_near(expected, "out", out, kTolerance<scalar_t>);
  const auto segment_grads = problem.template backward<kN>(segments, kAll);
  expect_gradients<scalar_t>(expected, segment_grads);

  Cut descending = segments;
  descending.order = BlockOrder::descending;
  EXPECT_EQ(out, problem.template forward<kN>(descending));
  EXPECT_EQ(segment_grads, problem.template backward<kN>(descending, kAll));

  // One gradient at a time: the same bits.
  EXPECT_EQ(grads.u, problem.template backward<kN>(whole, {true, false, false}).u);
  EXPECT_EQ(grads.post, problem.template backward<kN>(whole, {false, true, false}).post);
  EXPECT_EQ(grads.parameters, problem.template backward<kN>(whole, {false, false, true}).parameters);
}

class LegendreConvDevice : public testing::TestWithParam<oracle::Case> {};

TEST_P(LegendreConvDevice, EqualsTheOracle) {
  const auto num_coeffs = GetParam()["coeffs"].sizes[1];
  if (num_coeffs <= 9) check<float, 9>(GetParam(), true);
  if (num_coeffs > 9) check<float, 17>(GetParam(), num_coeffs <= 17);
  if (num_coeffs > 17) check<float, 33>(GetParam(), num_coeffs <= 33);
  check<float, kScanMaxCoeffs>(GetParam());
  check<double, kScanMaxCoeffs>(GetParam());
  check<BFloat16, 17>(GetParam());
}

INSTANTIATE_TEST_SUITE_P(
    Cases,
    LegendreConvDevice,
    testing::ValuesIn(oracle::cases_of(HYENAREC_ORACLE_TABLES, "legendre_conv")),
    [](const auto& info) { return case_name(info.param); });

}  // namespace
