#include "ops_test.h"

namespace {

TEST(HyenaMixer, AgreesWithTheOracle) {
  for (const at::Device device : devices()) {
    for (const Precision precision : precisions(device)) {
      for (const oracle::Case& tables : cases_of("hyena_mixer")) {
        const at::Tensor x = argument(tables, "x", device, precision.activation);
        const at::Tensor short_weight = argument(tables, "short_weight", device, precision.parameter);
        const auto short_bias = optional_argument(tables, "short_bias", device, precision.parameter);
        const at::Tensor coeffs = argument(tables, "coeffs", device, precision.parameter);
        const at::Tensor decay = argument(tables, "decay", device, precision.parameter);
        const at::Tensor skip = argument(tables, "skip", device, precision.parameter);
        const auto offsets = optional_argument(tables, "offsets", device, at::kLong);
        const at::Tensor out = hyenarec::hyena_mixer(
            x, short_weight, short_bias, coeffs, decay, tables.integer("horizon"), skip, offsets);
        EXPECT_EQ(out.scalar_type(), precision.activation);
        EXPECT_TRUE(out.is_contiguous());
        check_case(
            tables, out, {"x", "short_weight", "short_bias", "coeffs", "decay", "skip"},
            {x, short_weight, short_bias.value_or(at::Tensor()), coeffs, decay, skip}, precision);
      }
    }
  }
}

TEST(HyenaMixer, NamesWhatIsWrong) {
  const at::Tensor x = at::randn({2, 6, 12}), filter = at::randn({12, 3}), coeffs = at::randn({4, 3});
  const at::Tensor decay = at::rand({4}), skip = at::randn({4});
  const auto none = std::nullopt;
  expect_error(
      [&] {
        hyenarec::hyena_mixer(at::randn({2, 6, 11}), filter, none, coeffs, decay, 6, skip);
      },
      {"x", "3D", "[2, 6, 11]"});
  expect_error(
      [&] {
        hyenarec::hyena_mixer(x, at::randn({4, 3}), none, coeffs, decay, 6, skip);
      },
      {"short_weight", "3D = 12", "[4, 3]"});
  expect_error(
      [&] { hyenarec::hyena_mixer(x, filter, at::randn({4}), coeffs, decay, 6, skip); },
      {"short_bias", "[4]"});
  expect_error([&] { hyenarec::hyena_mixer(x, filter, none, coeffs, decay, 5, skip); }, {"x", "horizon = 5"});
  expect_error(
      [&] { hyenarec::hyena_mixer(x, filter, none, coeffs, decay, 6, at::randn({12})); }, {"skip", "[12]"});
}

}  // namespace
