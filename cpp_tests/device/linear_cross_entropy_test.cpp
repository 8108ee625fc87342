// linear_cross_entropy's kernel beside the oracle: the matrix products around it are plain loops here.
#include "device_test.h"

#include "ops/linear_cross_entropy/cuda.cuh"

namespace {

using namespace device_test;
using namespace hyenarec;
using cuda_on_cpu::BFloat16;
using cuda_on_cpu::Half;

// A case's arguments, and its scores before the kernel.
class Problem {
 public:
  explicit Problem(const oracle::Case& expected)
      : hidden(expected["hidden"].values),
        weight(expected["weight"].values),
        target(expected["target"].as<int64_t>()),
        row_weight(expected["grad"].values),
        rows(expected["hidden"].sizes[0]),
        dim(expected["hidden"].sizes[1]),
        items(expected["weight"].sizes[0]),
        sampled(expected.has("candidates")),
        smoothing(expected["label_smoothing"].values[0]),
        shift_(static_cast<size_t>(items)) {
    for (size_t item = 0; item < shift_.size(); ++item) {
      if (expected.has("bias")) shift_[item] += expected["bias"].values[item];
      if (expected.has("log_q")) shift_[item] -= expected["log_q"].values[item];
    }
    if (expected.has("adjusted")) {
      adjusted_ = expected["adjusted"].as<int64_t>();
      adjustment_ = expected["adjustment"].values;
    }
    if (sampled) classes = expected["candidates"].as<int64_t>();
    for (int64_t item = 0; !sampled && item < items; ++item) classes.push_back(item);
  }

  double shift(int64_t item) const { return shift_[static_cast<size_t>(item)]; }
  double logit(int64_t row, int64_t item) const {
    double sum = 0;
    for (int64_t d = 0; d < dim; ++d)
      sum += hidden[static_cast<size_t>(row * dim + d)] * weight[static_cast<size_t>(item * dim + d)];
    const size_t of_row = adjusted_.size() / static_cast<size_t>(rows);
    for (size_t k = static_cast<size_t>(row) * of_row; k < static_cast<size_t>(row + 1) * of_row; ++k)
      if (adjusted_[k] == item) sum += adjustment_[k];
    return sum;
  }
  int64_t num_classes() const { return static_cast<int64_t>(classes.size()); }

  std::vector<double> hidden, weight;
  std::vector<int64_t> target;
  std::vector<double> row_weight;
  int64_t rows, dim, items;
  bool sampled;
  double smoothing;
  std::vector<int64_t> classes;  // their items

 private:
  std::vector<double> shift_;
  std::vector<int64_t> adjusted_;
  std::vector<double> adjustment_;
};

struct Solution {
  std::vector<double> losses, hidden, weight, bias;
  bool operator==(const Solution&) const = default;
};

// `in_place`: the gradient is written where the logits are.
template <typename scalar_t>
Solution solve(const Problem& problem, bool in_place, BlockOrder order) {
  using T = accumulate_t<scalar_t>;
  const int64_t rows = problem.rows, classes = problem.num_classes();
  Buffer<T> logits(rows * classes), shift(classes), target_score(rows), losses(rows), of_target(rows);
  const Buffer<T> row_weight(problem.row_weight);
  Buffer<scalar_t> apart(in_place ? 0 : rows * classes);
  for (int64_t j = 0; j < classes; ++j)
    shift[j] = static_cast<T>(problem.shift(problem.classes[static_cast<size_t>(j)]));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < classes; ++j)
      logits[i * classes + j] = static_cast<T>(problem.logit(i, problem.classes[static_cast<size_t>(j)]));
    const int64_t item = problem.target[static_cast<size_t>(i)];
    if (item >= 0) target_score[i] = static_cast<T>(problem.logit(i, item) + problem.shift(item));
  }

  scalar_t* gradient = apart.data();
  if constexpr (std::is_same_v<T, scalar_t>) gradient = in_place ? logits.data() : gradient;
  CrossEntropyRows<scalar_t, T> arguments{};
  arguments.classes = classes;
  arguments.logits = logits.data();
  arguments.gradient = gradient;
  arguments.shift = shift.data();
  arguments.target = problem.target.data();
  arguments.target_score = problem.sampled ? target_score.data() : nullptr;
  arguments.candidates = problem.sampled ? problem.classes.data() : nullptr;
  arguments.row_weight = row_weight.data();
  arguments.smoothing = static_cast<T>(problem.smoothing);
  arguments.losses = losses.data();
  arguments.of_target = problem.sampled ? of_target.data() : nullptr;
  launch(cross_entropy_shape<scalar_t>(rows, classes), order, cross_entropy_rows<scalar_t>, arguments);

  Solution solution{losses.values(), {}, {}, {}};
  solution.hidden.resize(problem.hidden.size());
  solution.weight.resize(problem.weight.size());
  solution.bias.resize(static_cast<size_t>(problem.items));
  const auto add = [&](int64_t i, int64_t item, double value) {
    for (int64_t d = 0; d < problem.dim; ++d) {
      const auto of_row = static_cast<size_t>(i * problem.dim + d);
      const auto of_item = static_cast<size_t>(item * problem.dim + d);
      solution.hidden[of_row] += value * problem.weight[of_item];
      solution.weight[of_item] += value * problem.hidden[of_row];
    }
    solution.bias[static_cast<size_t>(item)] += value;
  };
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < classes; ++j)
      add(i, problem.classes[static_cast<size_t>(j)], static_cast<double>(gradient[i * classes + j]));
    const int64_t item = problem.target[static_cast<size_t>(i)];
    if (problem.sampled && item >= 0) add(i, item, static_cast<double>(of_target[i]));
  }
  return solution;
}

template <typename scalar_t>
void check(const oracle::Case& expected) {
  const Problem problem(expected);
  SCOPED_TRACE(expected.name());
  const auto solution = solve<scalar_t>(problem, false, BlockOrder::ascending);
  // Scores are rounded before the kernel, and differences of them count.
  constexpr double kSums = 4 * kTolerance<accumulate_t<scalar_t>>, kGradients = 4 * kTolerance<scalar_t>;
  EXPECT_LT(relative_error(solution.losses, expected["out"].values), kSums);
  EXPECT_LT(relative_error(solution.hidden, expected["grad_hidden"].values), kGradients);
  EXPECT_LT(relative_error(solution.weight, expected["grad_weight"].values), kGradients);
  if (expected.has("bias")) {
    EXPECT_LT(relative_error(solution.bias, expected["grad_bias"].values), kGradients);
  }
  if (!std::is_same_v<scalar_t, float>) return;
  EXPECT_EQ(solution, solve<scalar_t>(problem, true, BlockOrder::descending));
}

class LinearCrossEntropyDevice : public testing::TestWithParam<oracle::Case> {};

TEST_P(LinearCrossEntropyDevice, EqualsTheOracle) {
  if (GetParam()["target"].values.empty()) return;  // no tile, so no launch
  check<float>(GetParam());
  check<double>(GetParam());
  check<BFloat16>(GetParam());
  check<Half>(GetParam());
}

INSTANTIATE_TEST_SUITE_P(
    Cases, LinearCrossEntropyDevice,
    testing::ValuesIn(oracle::cases_of(HYENAREC_ORACLE_TABLES, "linear_cross_entropy")),
    [](const auto& info) { return case_name(info.param); });

// One row of scores in float: the loss, and the gradient by the scores.
std::vector<double> loss_and_gradient(const std::vector<double>& scores, int64_t target) {
  Buffer<float> logits(scores), shift(std::vector<double>(scores.size(), 0)), loss(1),
      gradient(logits.size());
  CrossEntropyRows<float, float> rows{};
  rows.classes = logits.size();
  rows.logits = logits.data();
  rows.gradient = gradient.data();
  rows.shift = shift.data();
  rows.target = &target;
  rows.losses = loss.data();
  launch(cross_entropy_shape<float>(1, rows.classes), BlockOrder::ascending, cross_entropy_rows<float>, rows);
  std::vector<double> result = gradient.values();
  result.insert(result.begin(), loss[0]);
  return result;
}

TEST(LinearCrossEntropyDeviceValues, InfiniteAndBadOnesStayWhereTheyAre) {
  const auto ruled_out = loss_and_gradient({0, -INFINITY, 0}, 0);
  EXPECT_NEAR(ruled_out[0], std::log(2.0), 1e-6);
  EXPECT_EQ(ruled_out[2], 0);
  const auto far_apart = loss_and_gradient({-3e38, 0, 3e38}, 2);
  EXPECT_EQ(far_apart, (std::vector<double>{0, 0, 0, 0}));
  for (const double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY)})
    EXPECT_FALSE(std::isfinite(loss_and_gradient({0, bad, 0}, 0)[0]));
  EXPECT_TRUE(std::isnan(loss_and_gradient({0, 1, 2}, 3)[0]));  // a target that is no class
}

}  // namespace
