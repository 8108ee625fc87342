// dropout_add_layer_norm on the CPU: a row at a time, which stays in the first-level cache for its second sweep; blocks
// of rows are shared among the threads. What must move: forward four activations (branch, residual -> sum, normed),
// backward five (two gradients, sum -> two gradients).
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "../common/argument_checks.h"
#include "../common/channels_last.h"
#include "../common/cpu/simd.h"
#include "dropout_add_layer_norm.h"
#include "random_levels.h"

namespace hyenarec {
namespace {

constexpr int64_t kBlockElements = 8192;  // of the rows that a thread takes together
constexpr int64_t kMostBlockRows = 128;   // as many as single precision adds up without losing digits

int64_t rows_per_block(int64_t channels) {
  return std::clamp<int64_t>(kBlockElements / channels, 1, kMostBlockRows);
}

// A tensor's rows, or none of them.
template <typename scalar_t>
struct Rows {
  scalar_t* data = nullptr;
  int64_t stride = 0;

  HYENAREC_INLINE scalar_t* operator[](int64_t row) const { return data ? data + row * stride : nullptr; }

  // Begins to fetch the row some kilobytes ahead. Where random bits are drawn in between, the processor would not look
  // so far by itself: 1.2 times faster, forward and backward.
  HYENAREC_INLINE void fetch_ahead_of(int64_t row, int64_t channels) const {
    if (!data) return;
    constexpr int64_t kAhead = 2048, kLine = 64;
    const auto size = static_cast<int64_t>(channels * sizeof(scalar_t));
    const auto* ahead = reinterpret_cast<const char*>(data + (row + kAhead / size + 1) * stride);
    for (int64_t byte = 0; byte < size; byte += kLine) __builtin_prefetch(ahead + byte);
  }
};
template <typename scalar_t>
Rows<const scalar_t> rows_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  return {tensor.const_data_ptr<scalar_t>(), tensor.stride(0)};
}
// Of a contiguous result, or of a gradient that is not needed.
template <typename scalar_t>
Rows<scalar_t> rows_of_result(const at::Tensor& tensor, int64_t channels, bool needed = true) {
  return {needed ? tensor.mutable_data_ptr<scalar_t>() : nullptr, channels};
}

// Which elements of a block of rows dropout leaves, and what it does to them.
template <typename V>
class Dropout {
 public:
  using scalar_t = simd::LaneOf<V>;

  HYENAREC_INLINE Dropout(const detail::DropoutLevels& levels, uint64_t seed, int64_t channels)
      : dropped_(levels.dropped),
        scale_(static_cast<scalar_t>(levels.scale)),
        channels_(channels),
        random_(seed) {}

  HYENAREC_INLINE bool draws() const { return dropped_ > 0; }

  HYENAREC_INLINE void begin_row(int64_t row) {
    if (draws()) of_row_ = random_.at(row * channels_, channels_);
  }
  // Of the row's channels from d on.
  HYENAREC_INLINE V operator()(const V& values, int64_t d) const {
    if (!draws()) return values;
    constexpr int lanes = simd::kLanes<V>;
    using Levels = simd::Vector<std::conditional_t<sizeof(scalar_t) == 8, uint64_t, uint32_t>, lanes>;
    const auto levels =
        __builtin_convertvector(simd::load_lanes<simd::Vector<uint16_t, lanes>>(of_row_ + d), Levels);
    return levels >= dropped_ ? values * scale_ : V{};
  }

 private:
  const uint32_t dropped_;
  const scalar_t scale_;
  const int64_t channels_;
  simd::RandomLevels random_;
  const uint16_t* of_row_ = nullptr;
};

// Calls visit(d, count) for each vector of `lanes` channels from d on, of which `count` exist.
template <int lanes, typename Visit>
HYENAREC_INLINE void over_channels(int64_t channels, const Visit& visit) {
  const int64_t last_whole = channels - channels % lanes;
  for (int64_t d = 0; d < last_whole; d += lanes) visit(d, std::integral_constant<int64_t, lanes>{});
  if (last_whole < channels) visit(last_whole, channels - last_whole);
}

// The vector with zeros behind its first `count` lanes.
template <typename V, typename Count>
HYENAREC_INLINE V first_lanes(V lanes, Count count) {
  for (int64_t i = count; i < simd::kLanes<V>; ++i) lanes[i] = 0;
  return lanes;
}

template <typename branch_t, typename sum_t>
struct ForwardRows {
  using compute_t = at::opmath_type<sum_t>;

  int64_t channels;
  Rows<const branch_t> branch;
  Rows<const sum_t> residual;
  const compute_t *weight, *bias;
  double eps;
  Rows<sum_t> normed, sum;
  compute_t *mean, *rstd;
};

template <typename V, typename branch_t, typename sum_t>
HYENAREC_INLINE void forward_row(const ForwardRows<branch_t, sum_t>& rows, Dropout<V>& dropout, int64_t row) {
  using compute_t = simd::LaneOf<V>;
  constexpr int lanes = simd::kLanes<V>;
  const branch_t* branch = rows.branch[row];
  const sum_t* residual = rows.residual[row];
  sum_t *sum = rows.sum[row], *normed = rows.normed[row];
  const auto size = static_cast<compute_t>(rows.channels);

  if (dropout.draws()) {
    rows.branch.fetch_ahead_of(row, rows.channels);
    rows.residual.fetch_ahead_of(row, rows.channels);
  }
  dropout.begin_row(row);
  V total{};
  over_channels<lanes>(rows.channels, [&](int64_t d, auto count) HYENAREC_INLINE_LAMBDA {
    V value = dropout(simd::load_first<V>(branch + d, count), d);
    if (residual) value += simd::load_first<V>(residual + d, count);
    simd::store_first(value, sum + d, count);
    // Of 16-bit sums as they were rounded.
    total += std::is_same_v<sum_t, compute_t> ? value : simd::load_first<V>(sum + d, count);
  });
  const compute_t mean = simd::sum_of_lanes(total) / size;

  V squares{};
  over_channels<lanes>(rows.channels, [&](int64_t d, auto count) HYENAREC_INLINE_LAMBDA {
    const V centred = first_lanes(simd::load_first<V>(sum + d, count) - mean, count);
    squares += centred * centred;
  });
  const compute_t variance = simd::sum_of_lanes(squares) / size;
  const compute_t rstd = 1 / std::sqrt(variance + static_cast<compute_t>(rows.eps));

  over_channels<lanes>(rows.channels, [&](int64_t d, auto count) HYENAREC_INLINE_LAMBDA {
    const V centred = simd::load_first<V>(sum + d, count) - mean;
    const V weight = simd::load_first<V>(rows.weight + d, count);
    simd::store_first(centred * rstd * weight + simd::load_first<V>(rows.bias + d, count), normed + d, count);
  });
  rows.mean[row] = mean;
  rows.rstd[row] = rstd;
}

template <typename branch_t, typename sum_t>
struct BackwardRows {
  using compute_t = at::opmath_type<sum_t>;

  int64_t channels;
  Rows<const sum_t> grad_normed, grad_sum, sum;
  const compute_t *mean, *rstd, *weight;
  Rows<branch_t> grad_branch;
  Rows<sum_t> grad_residual;
};

// Adds the row's share to the gradients of weight and bias, unless they are nullptr.
template <typename V, typename branch_t, typename sum_t>
HYENAREC_INLINE void backward_row(
    const BackwardRows<branch_t, sum_t>& rows,
    Dropout<V>& dropout,
    int64_t row,
    simd::LaneOf<V>* of_weight,
    simd::LaneOf<V>* of_bias) {
  using compute_t = simd::LaneOf<V>;
  constexpr int lanes = simd::kLanes<V>;
  const sum_t *grad_normed = rows.grad_normed[row], *grad_sum = rows.grad_sum[row], *sum = rows.sum[row];
  branch_t* grad_branch = rows.grad_branch[row];
  sum_t* grad_residual = rows.grad_residual[row];
  const compute_t mean = rows.mean[row], rstd = rows.rstd[row];
  const auto normalized = [&](int64_t d, auto count) HYENAREC_INLINE_LAMBDA -> V {
    return (simd::load_first<V>(sum + d, count) - mean) * rstd;
  };

  if (dropout.draws()) {
    rows.grad_normed.fetch_ahead_of(row, rows.channels);
    rows.grad_sum.fetch_ahead_of(row, rows.channels);
    rows.sum.fetch_ahead_of(row, rows.channels);
  }
  // Means of the gradient by the normalised row, and of its product with that row.
  compute_t mean_grad = 0, mean_product = 0;
  if (grad_normed) {
    V grads{}, products{};
    over_channels<lanes>(rows.channels, [&](int64_t d, auto count) HYENAREC_INLINE_LAMBDA {
      const V grad = simd::load_first<V>(grad_normed + d, count);
      const V product = grad * normalized(d, count);
      const V weight = simd::load_first<V>(rows.weight + d, count);
      grads += grad * weight;
      products += product * weight;
      if (of_weight)
        simd::store_first(simd::load_first<V>(of_weight + d, count) + product, of_weight + d, count);
      if (of_bias) simd::store_first(simd::load_first<V>(of_bias + d, count) + grad, of_bias + d, count);
    });
    const auto size = static_cast<compute_t>(rows.channels);
    mean_grad = simd::sum_of_lanes(grads) / size;
    mean_product = simd::sum_of_lanes(products) / size;
  }
  if (!grad_branch && !grad_residual) return;

  if (grad_branch) dropout.begin_row(row);
  over_channels<lanes>(rows.channels, [&](int64_t d, auto count) HYENAREC_INLINE_LAMBDA {
    V grad{};
    if (grad_normed) {
      const V weighted =
          simd::load_first<V>(grad_normed + d, count) * simd::load_first<V>(rows.weight + d, count);
      grad = (weighted - mean_grad - normalized(d, count) * mean_product) * rstd;
    }
    if (grad_sum) grad += simd::load_first<V>(grad_sum + d, count);
    if (grad_residual) simd::store_first(grad, grad_residual + d, count);
    if (grad_branch) simd::store_first(dropout(grad, d), grad_branch + d, count);
  });
}

// The sum over blocks [blocks, channels], `stride` apart, always in the same order.
template <typename compute_t>
void add_up(
    const compute_t* blocks, int64_t count, int64_t stride, int64_t channels, const at::Tensor& result) {
  std::vector<double> sums(channels, 0.0);
  for (int64_t block = 0; block < count; ++block) {
    for (int64_t d = 0; d < channels; ++d) sums[d] += blocks[block * stride + d];
  }
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, result.scalar_type(), "dropout_add_layer_norm_backward", [&] {
    auto* to = result.mutable_data_ptr<scalar_t>();
    for (int64_t d = 0; d < channels; ++d) to[d] = static_cast<scalar_t>(sums[d]);
  });
}

// Calls run(branch_t{}, sum_t{}) with the types in which the kernel reads branch and sum.
template <typename Run>
void dispatch(at::ScalarType branch, at::ScalarType sum, const Run& run) {
  if (branch != sum) return run(at::BFloat16{}, float{});
  AT_DISPATCH_FLOATING_TYPES_AND(
      at::kBFloat16, sum, "dropout_add_layer_norm", [&] { run(scalar_t{}, scalar_t{}); });
}

uint64_t value_of(const std::optional<at::Tensor>& seed) {
  return seed ? static_cast<uint64_t>(*seed->const_data_ptr<int64_t>()) : 0;
}

// Calls body(V{}, block, last) for each block of rows, which ends before `last`; V is the widest vector of compute_t.
template <typename compute_t, typename Body>
void over_blocks(int64_t rows, int64_t block_rows, const Body& body) {
  at::parallel_for(0, at::divup(rows, block_rows), 1, [&](int64_t first_block, int64_t last_block) {
    simd::run_with_widest_vectors([&](auto bytes) HYENAREC_INLINE_LAMBDA {
      using V = simd::Vector<compute_t, bytes / sizeof(compute_t)>;
      for (int64_t block = first_block; block < last_block; ++block)
        body(V{}, block, std::min((block + 1) * block_rows, rows));
    });
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> with_statistics_cpu(
    const at::Tensor& branch,
    const std::optional<at::Tensor>& residual,
    const at::Tensor& weight,
    const at::Tensor& bias,
    double p,
    double eps,
    const std::optional<at::Tensor>& seed) {
  const char* op = "dropout_add_layer_norm";
  detail::check_dropout_add_layer_norm_arguments(branch, residual, weight, bias, p, eps, seed);
  detail::check_cpu_activation_type({op, "branch", branch});
  if (residual) detail::check_cpu_activation_type({op, "residual", *residual});
  const auto type = detail::type_of_sum(branch, residual), parameters = detail::parameter_type(type);
  const auto options = branch.options().dtype(type);
  const int64_t channels = branch.size(-1), rows = branch.numel() / channels,
                block_rows = rows_per_block(channels);
  auto normed = at::empty(branch.sizes(), options), sum = at::empty(branch.sizes(), options);
  auto mean = at::empty(branch.sizes().slice(0, branch.dim() - 1), options.dtype(parameters));
  auto rstd = at::empty(mean.sizes(), mean.options());

  const auto branches = as_rows(branch.to(detail::kernel_type_of_branch(branch.scalar_type(), type)));
  const auto residuals = residual ? as_rows(residual->to(type)) : at::Tensor();
  const auto weights = weight.to(parameters).contiguous(), biases = bias.to(parameters).contiguous();
  const detail::DropoutLevels levels(p);
  const uint64_t key = value_of(seed);
  dispatch(branches.scalar_type(), type, [&](auto branch_zero, auto sum_zero) {
    using branch_t = decltype(branch_zero);
    using sum_t = decltype(sum_zero);
    using compute_t = at::opmath_type<sum_t>;
    const ForwardRows<branch_t, sum_t> arguments{
        channels,
        rows_of<branch_t>(branches),
        rows_of<sum_t>(residuals),
        weights.const_data_ptr<compute_t>(),
        biases.const_data_ptr<compute_t>(),
        eps,
        rows_of_result<sum_t>(normed, channels),
        rows_of_result<sum_t>(sum, channels),
        mean.mutable_data_ptr<compute_t>(),
        rstd.mutable_data_ptr<compute_t>()};
    over_blocks<compute_t>(rows, block_rows, [&](auto v, int64_t block, int64_t last) HYENAREC_INLINE_LAMBDA {
      Dropout<decltype(v)> dropout(levels, key, channels);
      for (int64_t row = block * block_rows; row < last; ++row) forward_row(arguments, dropout, row);
    });
  });
  return {normed, sum, mean, rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_cpu(
    const std::optional<at::Tensor>& grad_normed,
    const std::optional<at::Tensor>& grad_sum,
    const at::Tensor& sum,
    const at::Tensor& mean,
    const at::Tensor& rstd,
    const at::Tensor& weight,
    double p,
    const std::optional<at::Tensor>& seed,
    at::ScalarType branch_dtype,
    std::array<bool, 4> needs_grad) {
  const char* op = "dropout_add_layer_norm_backward";
  detail::check_dropout_add_layer_norm_backward_arguments(
      grad_normed, grad_sum, sum, mean, rstd, weight, p, seed);
  detail::check_cpu_activation_type({op, "sum", sum});
  const auto type = sum.scalar_type(), parameters = detail::parameter_type(type);
  const auto branch_type = detail::kernel_type_of_branch(branch_dtype, type);
  const int64_t channels = sum.size(-1), rows = sum.numel() / channels, block_rows = rows_per_block(channels);
  auto grad_branch = detail::empty_gradient(needs_grad[0], sum, branch_type);
  auto grad_residual = detail::empty_gradient(needs_grad[1], sum);
  auto grad_weight = detail::empty_gradient(needs_grad[2], weight);
  auto grad_bias = detail::empty_gradient(needs_grad[3], weight);

  const auto normed_grads = grad_normed ? as_rows(*grad_normed) : at::Tensor();
  const auto sum_grads = grad_sum ? as_rows(*grad_sum) : at::Tensor();
  const auto sums = as_rows(sum);
  const auto means = mean.contiguous(), rstds = rstd.contiguous();
  const auto weights = weight.to(parameters).contiguous();
  // One partial sum for each block of rows, added up in order: the same numbers on any number of threads.
  const int64_t blocks = needs_grad[2] || needs_grad[3] ? at::divup(rows, block_rows) : 0;
  const auto partial = at::zeros({blocks, 2, channels}, weights.options());
  const detail::DropoutLevels levels(p);
  const uint64_t key = value_of(seed);
  dispatch(branch_type, type, [&](auto branch_zero, auto sum_zero) {
    using branch_t = decltype(branch_zero);
    using sum_t = decltype(sum_zero);
    using compute_t = at::opmath_type<sum_t>;
    const BackwardRows<branch_t, sum_t> arguments{
        channels,
        rows_of<sum_t>(normed_grads),
        rows_of<sum_t>(sum_grads),
        rows_of<sum_t>(sums),
        means.const_data_ptr<compute_t>(),
        rstds.const_data_ptr<compute_t>(),
        weights.const_data_ptr<compute_t>(),
        rows_of_result<branch_t>(grad_branch, channels, needs_grad[0]),
        rows_of_result<sum_t>(grad_residual, channels, needs_grad[1])};
    auto* sums_of_blocks = partial.mutable_data_ptr<compute_t>();
    over_blocks<compute_t>(rows, block_rows, [&](auto v, int64_t block, int64_t last) HYENAREC_INLINE_LAMBDA {
      Dropout<decltype(v)> dropout(levels, key, channels);
      auto* of_block = sums_of_blocks + block * 2 * channels;
      for (int64_t row = block * block_rows; row < last; ++row) {
        backward_row(
            arguments, dropout, row, needs_grad[2] ? of_block : nullptr,
            needs_grad[3] ? of_block + channels : nullptr);
      }
    });
    if (needs_grad[2]) add_up(sums_of_blocks, blocks, 2 * channels, channels, grad_weight);
    if (needs_grad[3]) add_up(sums_of_blocks + channels, blocks, 2 * channels, channels, grad_bias);
  });
  return {grad_branch.to(branch_dtype), grad_residual, grad_weight, grad_bias};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("dropout_add_layer_norm_with_statistics", hyenarec::with_statistics_cpu);
  m.impl("dropout_add_layer_norm_backward", hyenarec::backward_cpu);
}
