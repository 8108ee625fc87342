#include "ops_test.h"

namespace {

// The first half of a history event by event, the rest in one call.
TEST(LegendreStep, StreamsThroughWhatLegendreConvGives) {
  const at::NoGradGuard guard;
  for (const at::Device device : devices()) {
    for (const Precision precision : precisions(device)) {
      for (const oracle::Case& tables : cases_of("legendre_conv")) {
        if (tables.has("offsets")) continue;
        const at::Tensor u = argument(tables, "u", device, precision.activation);
        const at::Tensor coeffs = argument(tables, "coeffs", device, precision.parameter);
        const at::Tensor decay = argument(tables, "decay", device, precision.parameter);
        const auto skip = optional_argument(tables, "skip", device, precision.parameter);
        const auto pre_gate = optional_argument(tables, "pre_gate", device, precision.activation);
        const auto post_gate = optional_argument(tables, "post_gate", device, precision.activation);
        const int64_t horizon = tables.integer("horizon"), length = u.size(1);
        const at::Tensor weights = hyenarec::legendre_step_weights(coeffs, decay, horizon, skip);
        at::Tensor state = hyenarec::legendre_step_state(coeffs, u.size(0));
        at::Tensor position = at::zeros({u.size(0)}, u.options().dtype(at::kLong));

        Tensors outs{u.slice(1, 0, 0)};
        for (int64_t first = 0, count = 1; first < length; first += count) {
          if (first >= length / 2) count = length - first;
          const auto part = [&](const std::optional<at::Tensor>& tensor) {
            return tensor ? std::optional(tensor->narrow(1, first, count)) : std::nullopt;
          };
          outs.push_back(hyenarec::legendre_step(
              state, *part(u), position, weights, horizon, part(pre_gate), part(post_gate)));
          position.add_(count);
        }
        expect_close(tables, "out", at::cat(outs, 1), precision.tolerance);
      }
    }
  }
}

TEST(LegendreStep, NamesWhatIsWrong) {
  const at::Tensor coeffs = at::randn({4, 3}), decay = at::rand({4}), u = at::randn({2, 4});
  const at::Tensor weights = hyenarec::legendre_step_weights(coeffs, decay, 6);
  at::Tensor state = hyenarec::legendre_step_state(coeffs, 2);
  const auto step = [&](const at::Tensor& event, const std::vector<int64_t>& position) {
    hyenarec::legendre_step(state, event, at::tensor(position, at::kLong), weights, 6);
  };
  step(u, {0, 5});
  expect_error([&] { step(u, {0, 6}); }, {"position", "horizon = 6", "got 6"});
  expect_error([&] { step(u, {0}); }, {"position", "B = 2", "[1]"});
  expect_error([&] { step(u[0], {0, 0}); }, {"u", "[B, D]", "[4]"});
  expect_error([&] { step(at::randn({3, 4}), {0, 0, 0}); }, {"state", "B = 3", "[2, 19, 4]"});
  expect_error([&] { step(u.clone().requires_grad_(), {0, 0}); }, {"u", "must not require a gradient"});
  expect_error([&] { hyenarec::legendre_step_weights(coeffs, -1 - decay, 6); }, {"decay", "not negative"});
}

}  // namespace
