#include "ops_test.h"

namespace {

TEST(LegendreConv, AgreesWithTheOracle) {
  for (const at::Device device : devices()) {
    for (const Precision precision : precisions(device)) {
      for (const oracle::Case& tables : cases_of("legendre_conv")) {
        const at::Tensor u = argument(tables, "u", device, precision.activation);
        const at::Tensor coeffs = argument(tables, "coeffs", device, precision.parameter);
        const at::Tensor decay = argument(tables, "decay", device, precision.parameter);
        const auto skip = optional_argument(tables, "skip", device, precision.parameter);
        const auto pre_gate = optional_argument(tables, "pre_gate", device, precision.activation);
        const auto post_gate = optional_argument(tables, "post_gate", device, precision.activation);
        const auto offsets = optional_argument(tables, "offsets", device, at::kLong);
        const at::Tensor out = hyenarec::legendre_conv(
            u, coeffs, decay, tables.integer("horizon"), skip, pre_gate, post_gate, offsets);
        EXPECT_EQ(out.scalar_type(), precision.activation);
        EXPECT_TRUE(out.is_contiguous());
        check_case(
            tables, out, {"u", "coeffs", "decay", "skip", "pre_gate", "post_gate"},
            {u, coeffs, decay, skip.value_or(at::Tensor()), pre_gate.value_or(at::Tensor()),
             post_gate.value_or(at::Tensor())},
            precision);
      }
    }
  }
}

TEST(LegendreConv, NamesWhatIsWrong) {
  const at::Tensor u = at::randn({2, 6, 4}), coeffs = at::randn({4, 3}), decay = at::rand({4});
  expect_error([&] { hyenarec::legendre_conv(u[0], coeffs, decay, 6); }, {"u", "[6, 4]"});
  expect_error([&] { hyenarec::legendre_conv(u, coeffs, decay, 5); }, {"u", "horizon = 5", "[2, 6, 4]"});
  expect_error([&] { hyenarec::legendre_conv(u, coeffs, decay, 0); }, {"horizon"});
  expect_error([&] { hyenarec::legendre_conv(u, at::randn({5, 3}), decay, 6); }, {"coeffs", "[5, 3]"});
  expect_error([&] { hyenarec::legendre_conv(u, coeffs, at::rand({5}), 6); }, {"decay", "[5]"});
  expect_error([&] { hyenarec::legendre_conv(u, coeffs, -1 - decay, 6); }, {"decay", "not negative"});
  expect_error([&] { hyenarec::legendre_conv(u, coeffs, decay, 6, at::randn({3})); }, {"skip", "[3]"});
  const auto packed = [&](const std::vector<int64_t>& offsets) {
    hyenarec::legendre_conv(
        at::randn({12, 4}), coeffs, decay, 6, std::nullopt, std::nullopt, std::nullopt,
        at::tensor(offsets, at::kLong));
  };
  expect_error([&] { packed({0, 8, 4, 12}); }, {"offsets", "decrease"});
  expect_error([&] { packed({0, 5, 12}); }, {"offsets", "horizon = 6", "got one of 7"});
}

}  // namespace
