#include "ops_test.h"

namespace {

TEST(ShortConv, AgreesWithTheOracle) {
  for (const at::Device device : devices()) {
    for (const Precision precision : precisions(device)) {
      for (const oracle::Case& tables : cases_of("short_conv")) {
        const at::Tensor u = argument(tables, "u", device, precision.activation);
        const at::Tensor weight = argument(tables, "weight", device, precision.parameter);
        const auto bias = optional_argument(tables, "bias", device, precision.parameter);
        const auto offsets = optional_argument(tables, "offsets", device, at::kLong);
        const at::Tensor out = hyenarec::short_conv(u, weight, bias, offsets);
        EXPECT_EQ(out.scalar_type(), precision.activation);
        EXPECT_TRUE(out.is_contiguous());
        check_case(tables, out, {"u", "weight", "bias"}, {u, weight, bias.value_or(at::Tensor())}, precision);
      }
    }
  }
}

TEST(ShortConv, NamesWhatIsWrong) {
  const at::Tensor u = at::randn({2, 6, 4}), weight = at::randn({4, 3});
  expect_error([&] { hyenarec::short_conv(u, at::randn({4, 9})); }, {"weight", "[4, 9]"});
  expect_error([&] { hyenarec::short_conv(u, at::randn({3, 3})); }, {"weight", "[3, 3]"});
  expect_error([&] { hyenarec::short_conv(u, weight, at::randn({2})); }, {"bias", "[2]"});
  const at::Tensor packed = at::randn({6, 4});
  const auto offsets = [](std::vector<int64_t> values) { return at::tensor(values, at::kLong); };
  expect_error([&] { hyenarec::short_conv(packed, weight, std::nullopt, at::zeros({3})); }, {"offsets"});
  expect_error(
      [&] {
        hyenarec::short_conv(packed, weight, std::nullopt, offsets({0, 4, 2, 6}));
      },
      {"offsets"});
  expect_error([&] { hyenarec::short_conv(packed, weight, std::nullopt, offsets({0, 5})); }, {"offsets"});
}

}  // namespace
