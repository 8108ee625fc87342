// The public C++ functions of the operators: against the oracle tables forward and backward in every dtype
// and on every device present, and their errors.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "hyenarec.h"
#include "oracle_tables.h"

namespace {

using Tensors = std::vector<at::Tensor>;

// How an activation of a dtype is tested: parameters stay in float32 beside 16-bit activations. The tolerance
// is relative to the largest expected number.
struct Precision {
  at::ScalarType activation;
  at::ScalarType parameter;
  double tolerance;
};
constexpr Precision kDouble{at::kDouble, at::kDouble, 1e-12};
constexpr Precision kFloat{at::kFloat, at::kFloat, 5e-6};
constexpr Precision kBFloat16{at::kBFloat16, at::kFloat, 1e-2};
constexpr Precision kHalf{at::kHalf, at::kFloat, 2e-3};

std::vector<oracle::Case> cases_of(const std::string& op) {
  return oracle::cases_of(HYENAREC_ORACLE_TABLES, op);
}

std::vector<at::Device> devices() {
  std::vector<at::Device> found{at::kCPU};
  if (at::hasCUDA() && at::globalContext().hasCUDA() && at::detail::getCUDAHooks().deviceCount() > 0) {
    found.emplace_back(at::kCUDA);
  }
  return found;
}

// A table as an argument: differentiable if it is of a floating type.
at::Tensor argument(
    const oracle::Case& tables, const std::string& name, at::Device device, at::ScalarType type) {
  const at::Tensor tensor = at::tensor(tables[name].values, at::kDouble).view(tables[name].sizes);
  return tensor.to(device, type).requires_grad_(at::isFloatingType(type));
}

std::optional<at::Tensor> optional_argument(
    const oracle::Case& tables, const std::string& name, at::Device device, at::ScalarType type) {
  if (!tables.has(name)) return std::nullopt;
  return argument(tables, name, device, type);
}

void expect_close(
    const oracle::Case& tables, const std::string& name, const at::Tensor& got, double tolerance) {
  SCOPED_TRACE(tables.name() + ": " + name);
  const at::Tensor expected = at::tensor(tables[name].values, at::kDouble).view(tables[name].sizes);
  ASSERT_EQ(got.sizes(), expected.sizes());
  if (expected.numel() == 0) return;
  const double scale = 1 + expected.abs().max().item<double>();
  const double error = (got.detach().to(at::kCPU, at::kDouble) - expected).abs().max().item<double>();
  EXPECT_LE(error, tolerance * scale);
}

// Compares the output and every gradient. `names` are those of `arguments`; absent ones are undefined
// tensors.
void check_case(
    const oracle::Case& tables, const at::Tensor& out, const std::vector<std::string>& names,
    const Tensors& arguments, Precision precision) {
  expect_close(tables, "out", out, precision.tolerance);
  Tensors inputs;
  std::vector<std::string> input_names;
  for (size_t i = 0; i < names.size(); ++i) {
    if (!arguments[i].defined()) continue;
    inputs.push_back(arguments[i]);
    input_names.push_back(names[i]);
  }
  const at::Tensor grad = argument(tables, "grad", out.device(), out.scalar_type()).detach();
  const Tensors grads = torch::autograd::grad({out}, inputs, {grad});
  for (size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_EQ(grads[i].scalar_type(), inputs[i].scalar_type());
    expect_close(tables, "grad_" + input_names[i], grads[i], precision.tolerance);
  }
}

std::vector<Precision> precisions(at::Device device) {
  std::vector<Precision> all{kDouble, kFloat, kBFloat16};
  if (device.is_cuda()) all.push_back(kHalf);
  return all;
}

// Runs `call`, which must throw an error that holds every one of `words`.
void expect_error(const std::function<void()>& call, const std::vector<std::string>& words) {
  try {
    call();
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    for (const std::string& word : words) {
      EXPECT_NE(message.find(word), std::string::npos) << "'" << word << "' is missing in: " << message;
    }
    return;
  }
  ADD_FAILURE() << "no error, expected one with '" << words.front() << "'";
}

TEST(LegendreKernel, AgreesWithTheOracle) {
  for (const at::Device device : devices()) {
    for (const Precision precision : {kDouble, kFloat}) {
      for (const oracle::Case& tables : cases_of("legendre_kernel")) {
        const at::Tensor coeffs = argument(tables, "coeffs", device, precision.parameter);
        const at::Tensor decay = argument(tables, "decay", device, precision.parameter);
        const at::Tensor out =
            hyenarec::legendre_kernel(coeffs, decay, tables.integer("horizon"), tables.integer("length"));
        check_case(tables, out, {"coeffs", "decay"}, {coeffs, decay}, precision);
      }
    }
  }
}

TEST(FftConv, AgreesWithTheOracle) {
  for (const at::Device device : devices()) {
    for (const Precision precision : precisions(device)) {
      for (const oracle::Case& tables : cases_of("fft_conv")) {
        const at::Tensor u = argument(tables, "u", device, precision.activation);
        const at::Tensor kernel = argument(tables, "kernel", device, precision.parameter);
        const auto skip = optional_argument(tables, "skip", device, precision.parameter);
        const auto pre_gate = optional_argument(tables, "pre_gate", device, precision.activation);
        const auto post_gate = optional_argument(tables, "post_gate", device, precision.activation);
        const at::Tensor out = hyenarec::fft_conv(u, kernel, skip, pre_gate, post_gate);
        EXPECT_EQ(out.scalar_type(), precision.activation);
        EXPECT_TRUE(out.is_contiguous());
        check_case(
            tables, out, {"u", "kernel", "skip", "pre_gate", "post_gate"},
            {u, kernel, skip.value_or(at::Tensor()), pre_gate.value_or(at::Tensor()),
             post_gate.value_or(at::Tensor())},
            precision);
      }
    }
  }
}

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
        const double label_smoothing = tables["label_smoothing"].values[0];
        const auto loss = [&](c10::string_view reduction) {
          return hyenarec::linear_cross_entropy(
              hidden, weight, bias, target, candidates, log_q, label_smoothing, reduction);
        };
        const at::Tensor losses = loss("none");
        EXPECT_EQ(losses.scalar_type(), precision.parameter);
        check_case(
            tables, losses, {"hidden", "weight", "bias"}, {hidden, weight, bias.value_or(at::Tensor())},
            precision);

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

TEST(FftConv, IsTheSameForStridedArguments) {
  const at::Tensor wide = at::randn({2, 30, 10});
  const at::Tensor u = wide.slice(2, 0, 5), gate = wide.slice(2, 5, 10);
  const at::Tensor kernel = at::randn({30, 5}).t();
  const at::Tensor strided = hyenarec::fft_conv(u, kernel, std::nullopt, gate, gate);
  const at::Tensor dense = hyenarec::fft_conv(
      u.contiguous(), kernel.contiguous(), std::nullopt, gate.contiguous(), gate.contiguous());
  EXPECT_TRUE(at::equal(strided, dense));
}

TEST(LegendreKernel, NamesWhatIsWrong) {
  const at::Tensor coeffs = at::randn({4, 3}), decay = at::rand({4});
  expect_error([&] { hyenarec::legendre_kernel(coeffs[0], decay, 5, 5); }, {"coeffs", "[D, N]"});
  expect_error([&] { hyenarec::legendre_kernel(coeffs, at::rand({5}), 5, 5); }, {"decay", "[5]"});
  expect_error([&] { hyenarec::legendre_kernel(coeffs, decay.to(at::kDouble), 5, 5); }, {"decay"});
  expect_error([&] { hyenarec::legendre_kernel(coeffs, decay, 0, 0); }, {"horizon"});
  expect_error([&] { hyenarec::legendre_kernel(coeffs, decay, 5, 6); }, {"length"});
  expect_error([&] { hyenarec::legendre_kernel(coeffs, -1 - decay, 5, 5); }, {"decay"});
}

TEST(FftConv, NamesWhatIsWrong) {
  const at::Tensor u = at::randn({2, 6, 4}), kernel = at::randn({4, 6});
  expect_error([&] { hyenarec::fft_conv(u[0], kernel); }, {"u", "[6, 4]"});
  expect_error([&] { hyenarec::fft_conv(u.to(at::kInt), kernel); }, {"u"});
  expect_error([&] { hyenarec::fft_conv(u, at::randn({5, 6})); }, {"kernel", "[5, 6]"});
  expect_error([&] { hyenarec::fft_conv(u, kernel, at::randn({3})); }, {"skip", "[3]"});
  expect_error([&] { hyenarec::fft_conv(u, kernel, std::nullopt, at::randn({2, 6, 3})); }, {"pre_gate"});
  expect_error(
      [&] {
        hyenarec::fft_conv(u, kernel, std::nullopt, std::nullopt, at::randn({2, 5, 4}));
      },
      {"post_gate"});
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
}

TEST(Checks, AlsoRunInInferenceMode) {
  const c10::InferenceMode guard;
  const at::Tensor u = at::randn({2, 6, 4});
  expect_error([&] { hyenarec::fft_conv(u, at::randn({5, 6})); }, {"kernel", "[5, 6]"});
  expect_error([&] { hyenarec::short_conv(u, at::randn({3, 3})); }, {"weight", "[3, 3]"});
  expect_error([&] { hyenarec::legendre_kernel(at::randn({4, 3}), at::rand({5}), 5, 5); }, {"decay", "[5]"});
  expect_error([&] { hyenarec::legendre_conv(u, at::randn({4, 3}), at::rand({5}), 6); }, {"decay", "[5]"});
}

TEST(Gradients, OfGradientsRaise) {
  const at::Tensor u = at::randn({2, 6, 4}, at::kDouble).requires_grad_(true);
  const at::Tensor kernel = at::randn({4, 6}, at::kDouble).requires_grad_(true);
  const at::Tensor loss = hyenarec::fft_conv(u, kernel).square().sum();
  const Tensors grads = torch::autograd::grad({loss}, {u}, {}, std::nullopt, /*create_graph=*/true);
  expect_error([&] { torch::autograd::grad({grads[0].sum()}, {kernel}); }, {"fft_conv"});
}

}  // namespace
