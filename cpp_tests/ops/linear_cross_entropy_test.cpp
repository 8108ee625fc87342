#include "ops_test.h"

#include <algorithm>

namespace {

TEST(LinearCrossEntropy, AgreesWithTheOracle) {
  for (const at::Device device : devices()) {
    for (const Precision precision : precisions(device)) {
      for (const oracle::Case& tables : cases_of("linear_cross_entropy")) {
        const at::Tensor hidden = argument(tables, "hidden", device, precision.activation);
        const at::Tensor weight = argument(tables, "weight", device, precision.activation);
        const auto bias = optional_argument(tables, "bias", device, precision.parameter);
        const at::Tensor target = argument(tables, "target", device, at::kLong);
        const auto candidates = optional_argument(tables, "candidates", device, at::kLong);
        auto log_q = optional_argument(tables, "log_q", device, precision.parameter);
        if (log_q) log_q->requires_grad_(false);
        const auto adjusted = optional_argument(tables, "adjusted", device, at::kLong);
        const auto adjustment = optional_argument(tables, "adjustment", device, precision.parameter);
        const double label_smoothing = tables["label_smoothing"].values[0];
        const auto loss = [&](c10::string_view reduction) {
          return hyenarec::linear_cross_entropy(
              hidden, weight, bias, target, candidates, log_q, label_smoothing, reduction, adjusted,
              adjustment);
        };
        const at::Tensor losses = loss("none");
        EXPECT_EQ(losses.scalar_type(), precision.parameter);
        check_case(
            tables, losses, {"hidden", "weight", "bias", "adjustment"},
            {hidden, weight, bias.value_or(at::Tensor()), adjustment.value_or(at::Tensor())}, precision);

        // Reduced, the gradients come with the forward pass.
        const double sum = losses.sum().item<double>();
        const double targets = std::max(target.ge(0).sum().item<double>(), 1.0);
        EXPECT_NEAR(loss("sum").item<double>(), sum, 1e-5 * (1 + sum));
        EXPECT_NEAR(loss("mean").item<double>(), sum / targets, 1e-5 * (1 + sum));
        const at::Tensor by_sum = torch::autograd::grad({loss("sum")}, {weight})[0];
        const at::Tensor by_losses = torch::autograd::grad({loss("none").sum()}, {weight})[0];
        EXPECT_TRUE(at::allclose(by_sum, by_losses, precision.tolerance, precision.tolerance));
      }
    }
  }
}

TEST(LinearCrossEntropy, NamesWhatIsWrong) {
  const at::Tensor hidden = at::randn({3, 4}), weight = at::randn({6, 4});
  const at::Tensor target = at::tensor({0, -1, 5}, at::kLong);
  const auto none = std::nullopt;
  expect_error(
      [&] {
        hyenarec::linear_cross_entropy(hidden, at::randn({6, 3}), none, target);
      },
      {"weight", "D = 4", "[6, 3]"});
  expect_error(
      [&] { hyenarec::linear_cross_entropy(hidden, weight, at::randn({5}), target); }, {"bias", "[5]"});
  expect_error(
      [&] { hyenarec::linear_cross_entropy(hidden, weight, none, target + 1); }, {"target", "got 6"});
  expect_error(
      [&] { hyenarec::linear_cross_entropy(hidden, weight, none, target, none, none, 0, "max"); },
      {"reduction", "'max'"});
  expect_error(
      [&] {
        const at::Tensor adjusted = at::zeros({2, 1}, at::kLong), adjustment = at::zeros({2, 1});
        hyenarec::linear_cross_entropy(
            hidden, weight, none, target, none, none, 0, "sum", adjusted, adjustment);
      },
      {"adjusted", "M = 3", "[2, 1]"});
}

}  // namespace
