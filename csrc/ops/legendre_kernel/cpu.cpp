// legendre_kernel on the CPU: everything in double. A tile of lags gets its basis P_n once, for all channels
// of a thread; exp(-decay lag) comes from two short tables, so that no lag costs an exponential.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../common/argument_checks.h"
#include "../common/cpu/simd.h"
#include "../legendre_scan/math.h"
#include "legendre_kernel.h"

namespace hyenarec {
namespace {

constexpr int64_t kTile = 64;         // lags at a time: their basis stays in the first-level cache
constexpr int64_t kChannelGrain = 8;  // fewer channels a thread would not pay for the basis

// basis[n][i] = P_n(u(first + i)) for i < kTile. Lags beyond the horizon repeat its last: outside [-1, 1] the
// polynomials overflow, and the zeros that these lags meet would make NaN of that.
HYENAREC_SIMD void fill_basis(double* basis, int64_t num_coeffs, int64_t first, int64_t horizon) {
  double position[kTile];
  for (int64_t i = 0; i < kTile; ++i)
    position[i] = legendre_position(std::min(first + i, horizon - 1), horizon);
  if (num_coeffs > 0) std::fill(basis, basis + kTile, 1.0);
  for (int64_t n = 1; n < num_coeffs; ++n) {
    double* next = basis + n * kTile;
    const double* current = next - kTile;
    const double* previous = n > 1 ? current - kTile : current;
    for (int64_t i = 0; i < kTile; ++i) next[i] = legendre_next(n - 1, position[i], current[i], previous[i]);
  }
}

// sum[i] = sum_n coeffs[n] basis[n][i]
HYENAREC_SIMD void combine(const double* coeffs, const double* basis, int64_t num_coeffs, double* sum) {
  std::fill(sum, sum + kTile, 0.0);
  for (int64_t n = 0; n < num_coeffs; ++n) {
    for (int64_t i = 0; i < kTile; ++i) sum[i] += coeffs[n] * basis[n * kTile + i];
  }
}

// moments[n] += sum_i values[i] basis[n][i], in eight running sums a moment: a fixed order.
HYENAREC_SIMD void add_moments(
    const double* values, const double* basis, int64_t num_coeffs, double* moments) {
  for (int64_t n = 0; n < num_coeffs; ++n) {
    double lanes[8] = {};
    for (int64_t i = 0; i < kTile; i += 8) {
      for (int64_t j = 0; j < 8; ++j) lanes[j] += values[i + j] * basis[n * kTile + i + j];
    }
    for (int64_t j = 0; j < 8; ++j) moments[n] += lanes[j];
  }
}

// exp(-decay lag) = within[lag - first] * exp(-decay first) for a tile that starts at `first`.
struct DecayTable {
  double within[kTile];
  double decay;

  explicit DecayTable(double decay) : decay(decay) {
    for (int64_t i = 0; i < kTile; ++i) within[i] = std::exp(-decay * static_cast<double>(i));
  }
  double at_tile(int64_t first) const { return std::exp(-decay * static_cast<double>(first)); }
};

template <typename scalar_t>
void forward_channels(
    const scalar_t* coeffs,
    const scalar_t* decay,
    int64_t num_coeffs,
    int64_t horizon,
    int64_t length,
    int64_t first_channel,
    int64_t last_channel,
    scalar_t* out) {
  const int64_t channels = last_channel - first_channel;
  const std::vector<double> weights(coeffs + first_channel * num_coeffs, coeffs + last_channel * num_coeffs);
  const std::vector<DecayTable> decays(decay + first_channel, decay + last_channel);
  std::vector<double> basis(num_coeffs * kTile);
  double sum[kTile];
  for (int64_t first = 0; first < length; first += kTile) {
    const int64_t count = std::min(kTile, length - first);
    fill_basis(basis.data(), num_coeffs, first, horizon);
    for (int64_t d = 0; d < channels; ++d) {
      combine(weights.data() + d * num_coeffs, basis.data(), num_coeffs, sum);
      const double scale = decays[d].at_tile(first);
      scalar_t* row = out + (first_channel + d) * length + first;
      for (int64_t i = 0; i < count; ++i)
        row[i] = static_cast<scalar_t>(scale * decays[d].within[i] * sum[i]);
    }
  }
}

// d/dcoeffs[n] = sum_lag w P_n and d/ddecay = -sum_lag lag w sum_n coeffs[n] P_n, where w = grad exp(-decay
// lag).
template <typename scalar_t>
void backward_channels(
    const scalar_t* grad,
    const scalar_t* coeffs,
    const scalar_t* decay,
    int64_t num_coeffs,
    int64_t horizon,
    int64_t length,
    int64_t first_channel,
    int64_t last_channel,
    scalar_t* coeffs_grad,
    scalar_t* decay_grad) {
  const int64_t channels = last_channel - first_channel;
  const std::vector<double> weights(coeffs + first_channel * num_coeffs, coeffs + last_channel * num_coeffs);
  const std::vector<DecayTable> decays(decay + first_channel, decay + last_channel);
  std::vector<double> basis(num_coeffs * kTile);
  std::vector<double> moments(channels * num_coeffs, 0.0);
  std::vector<double> lag_moments(channels, 0.0);
  double sum[kTile];
  double weighted[kTile];
  for (int64_t first = 0; first < length; first += kTile) {
    const int64_t count = std::min(kTile, length - first);
    fill_basis(basis.data(), num_coeffs, first, horizon);
    for (int64_t d = 0; d < channels; ++d) {
      const double scale = decays[d].at_tile(first);
      const scalar_t* row = grad + (first_channel + d) * length + first;
      for (int64_t i = 0; i < count; ++i)
        weighted[i] = scale * decays[d].within[i] * static_cast<double>(row[i]);
      std::fill(weighted + count, weighted + kTile, 0.0);
      add_moments(weighted, basis.data(), num_coeffs, moments.data() + d * num_coeffs);
      combine(weights.data() + d * num_coeffs, basis.data(), num_coeffs, sum);
      for (int64_t i = 0; i < count; ++i)
        lag_moments[d] -= static_cast<double>(first + i) * weighted[i] * sum[i];
    }
  }
  std::copy(moments.begin(), moments.end(), coeffs_grad + first_channel * num_coeffs);
  std::copy(lag_moments.begin(), lag_moments.end(), decay_grad + first_channel);
}

at::Tensor legendre_kernel_cpu(
    const at::Tensor& coeffs, const at::Tensor& decay, int64_t horizon, int64_t length) {
  detail::check_legendre_kernel_arguments(coeffs, decay, horizon, length);
  detail::check_decay_values("legendre_kernel", decay);
  const auto rows = coeffs.contiguous();
  const auto rates = decay.contiguous();
  auto out = at::empty({coeffs.size(0), length}, coeffs.options());
  AT_DISPATCH_FLOATING_TYPES(coeffs.scalar_type(), "legendre_kernel", [&] {
    const auto* coeffs_data = rows.const_data_ptr<scalar_t>();
    const auto* decay_data = rates.const_data_ptr<scalar_t>();
    auto* out_data = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, coeffs.size(0), kChannelGrain, [&](int64_t first, int64_t last) {
      forward_channels(coeffs_data, decay_data, coeffs.size(1), horizon, length, first, last, out_data);
    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> legendre_kernel_backward_cpu(
    const at::Tensor& grad, const at::Tensor& coeffs, const at::Tensor& decay, int64_t horizon) {
  detail::check_legendre_kernel_backward_arguments(grad, coeffs, decay, horizon);
  detail::check_decay_values("legendre_kernel_backward", decay);
  const auto grads = grad.contiguous();
  const auto rows = coeffs.contiguous();
  const auto rates = decay.contiguous();
  auto coeffs_grad = at::empty(coeffs.sizes(), coeffs.options());
  auto decay_grad = at::empty(decay.sizes(), decay.options());
  AT_DISPATCH_FLOATING_TYPES(coeffs.scalar_type(), "legendre_kernel_backward", [&] {
    const auto* grad_data = grads.const_data_ptr<scalar_t>();
    const auto* coeffs_data = rows.const_data_ptr<scalar_t>();
    const auto* decay_data = rates.const_data_ptr<scalar_t>();
    auto* coeffs_grad_data = coeffs_grad.mutable_data_ptr<scalar_t>();
    auto* decay_grad_data = decay_grad.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, coeffs.size(0), kChannelGrain, [&](int64_t first, int64_t last) {
      backward_channels(
          grad_data, coeffs_data, decay_data, coeffs.size(1), horizon, grad.size(1), first, last,
          coeffs_grad_data, decay_grad_data);
    });
  });
  return {coeffs_grad, decay_grad};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("legendre_kernel", hyenarec::legendre_kernel_cpu);
  m.impl("legendre_kernel_backward", hyenarec::legendre_kernel_backward_cpu);
}
