#include "ops_test.h"

namespace {

TEST(DropoutAddLayerNorm, AgreesWithTheOracle) {
  for (const at::Device device : devices()) {
    for (const Precision precision : precisions(device)) {
      for (const oracle::Case& tables : cases_of("dropout_add_layer_norm")) {
        const at::Tensor branch = argument(tables, "branch", device, precision.activation);
        const auto residual = optional_argument(tables, "residual", device, precision.activation);
        const at::Tensor weight = argument(tables, "weight", device, precision.parameter);
        const at::Tensor bias = argument(tables, "bias", device, precision.parameter);
        const auto seed = optional_argument(tables, "seed", device, at::kLong);
        const auto [normed, sum] = hyenarec::dropout_add_layer_norm(
            branch, residual, weight, bias, tables["p"].values[0], tables["eps"].values[0], seed);
        EXPECT_EQ(normed.scalar_type(), precision.activation);
        EXPECT_TRUE(normed.is_contiguous() && sum.is_contiguous());
        check_case(
            tables, at::stack({normed, sum}), {"branch", "residual", "weight", "bias"},
            {branch, residual.value_or(at::Tensor()), weight, bias}, precision);
      }
    }
  }
}

TEST(DropoutAddLayerNorm, NamesWhatIsWrong) {
  const at::Tensor branch = at::randn({3, 4}), vector = at::randn({4});
  expect_error(
      [&] {
        hyenarec::dropout_add_layer_norm(branch, at::randn({2, 4}), vector, vector);
      },
      {"residual", "[3, 4]", "[2, 4]"});
  expect_error(
      [&] { hyenarec::dropout_add_layer_norm(branch, std::nullopt, at::randn({3}), vector); },
      {"weight", "D = 4", "[3]"});
  expect_error(
      [&] { hyenarec::dropout_add_layer_norm(branch, std::nullopt, vector, vector, 0.5); },
      {"seed", "p = 0.5"});
}

}  // namespace
