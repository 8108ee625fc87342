// legendre_kernel's kernels beside the oracle, both orders of blocks.
#include "device_test.h"

#include "ops/legendre_kernel/cuda.cuh"

namespace {

using namespace device_test;
using namespace hyenarec;

template <typename T>
struct Inputs {
  explicit Inputs(const oracle::Case& expected)
      : channels(expected["coeffs"].sizes[0]),
        degrees(expected["coeffs"].sizes[1]),
        horizon(expected.integer("horizon")),
        length(expected.integer("length")),
        coeffs(expected["coeffs"].values),
        decay(expected["decay"].values),
        grad(expected["grad"].values) {}

  int64_t channels, degrees, horizon, length;
  Buffer<T> coeffs, decay, grad;
};

template <typename T>
std::vector<double> forward(const Inputs<T>& in, BlockOrder order) {
  Buffer<T> kernel(in.channels * in.length);
  launch(
      legendre_kernel_forward_shape<T>(in.channels, in.length), order, legendre_kernel_forward<T>,
      in.channels, in.degrees, in.horizon, in.length, in.coeffs.data(), in.decay.data(), kernel.data());
  return kernel.values();
}

struct Gradients {
  std::vector<double> coeffs, decay;
  bool operator==(const Gradients&) const = default;
};

template <typename T>
Gradients backward(const Inputs<T>& in, BlockOrder order) {
  const auto shape = legendre_kernel_backward_shape<T>(in.channels, in.degrees, in.length);
  Buffer<double> moments(shape.segments * 2 * in.channels * in.degrees);
  Buffer<T> grad_coeffs(in.channels * in.degrees), grad_decay(in.channels);
  launch(
      shape.launch, order, legendre_kernel_moments<T>, in.channels, in.degrees, in.horizon, in.length,
      shape.degree_tiles, shape.tile_degrees, shape.segments, shape.segment_lags, in.grad.data(),
      in.decay.data(), moments.data());
  launch(
      legendre_kernel_finish_shape(in.channels), order, legendre_kernel_backward_finish<T>, in.channels,
      in.degrees, shape.segments, moments.data(), in.coeffs.data(), grad_coeffs.data(), grad_decay.data());
  return {grad_coeffs.values(), grad_decay.values()};
}

template <typename T>
void check(const oracle::Case& expected) {
  const Inputs<T> in(expected);
  if (in.channels * in.degrees * in.length == 0) return;  // the launcher returns before
  SCOPED_TRACE(expected.name() + (sizeof(T) == 8 ? ", double" : ", float"));

  const auto kernel = forward(in, BlockOrder::ascending);
  EXPECT_LT(relative_error(kernel, expected["out"].values), kTolerance<T>);
  EXPECT_EQ(kernel, forward(in, BlockOrder::descending));

  const auto grads = backward(in, BlockOrder::ascending);
  EXPECT_LT(relative_error(grads.coeffs, expected["grad_coeffs"].values), kTolerance<T>);
  EXPECT_LT(relative_error(grads.decay, expected["grad_decay"].values), kTolerance<T>);
  EXPECT_EQ(grads, backward(in, BlockOrder::descending));
}

class LegendreKernelDevice : public testing::TestWithParam<oracle::Case> {};

TEST_P(LegendreKernelDevice, EqualsTheOracle) {
  check<float>(GetParam());
  check<double>(GetParam());
}

INSTANTIATE_TEST_SUITE_P(
    Cases, LegendreKernelDevice,
    testing::ValuesIn(oracle::cases_of(HYENAREC_ORACLE_TABLES, "legendre_kernel")),
    [](const auto& info) { return case_name(info.param); });

}  // namespace
