// legendre_kernel on the CPU: everything in double. A tile of lags gets its basis P_n once, for all channels
// of a thread; exp(-decay lag) comes from two short tables, so that no lag costs an exponential. No torch
// here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../common/cpu/simd.h"
#include "../legendre_scan/math.h"

namespace hyenarec::cpu::legendre_kernel {

constexpr int64_t kTile = 64;         // lags at a time: their basis stays in the first-level cache
constexpr int64_t kChannelGrain = 8;  // fewer channels a thread would not pay for the basis

using Lanes = simd::Vector<double>;
constexpr int64_t kLanes = simd::kLanes<Lanes>;

// The kernels' parameters: coeffs [D, N], decay [D].
template <typename scalar_t>
struct Parameters {
  const scalar_t *coeffs, *decay;
  int64_t num_coeffs, horizon, length;
};

// basis[n][i] = P_n(u(first + i)) for i < kTile. Lags beyond the horizon repeat its last: outside [-1, 1] the
// polynomials overflow, and the zeros that these lags meet would make NaN of that.
HYENAREC_INLINE void fill_basis(double* basis, int64_t num_coeffs, int64_t first, int64_t horizon) {
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
HYENAREC_INLINE void combine(const double* coeffs, const double* basis, int64_t num_coeffs, double* sum) {
  std::fill(sum, sum + kTile, 0.0);
  for (int64_t n = 0; n < num_coeffs; ++n) {
    for (int64_t i = 0; i < kTile; ++i) sum[i] += coeffs[n] * basis[n * kTile + i];
  }
}

// moments[n] += sum_i values[i] basis[n][i], in eight running sums a moment: a fixed order.
HYENAREC_INLINE void add_moments(
    const double* values, const double* basis, int64_t num_coeffs, double* moments) {
  for (int64_t n = 0; n < num_coeffs; ++n) {
    Lanes lanes{};
    for (int64_t i = 0; i < kTile; i += kLanes)
      lanes += simd::load(values + i) * simd::load(basis + n * kTile + i);
    for (int64_t j = 0; j < kLanes; ++j) moments[n] += lanes[j];
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

// The parameters of a range of channels, and the basis of a tile, in double.
template <typename scalar_t>
struct Channels {
  int64_t num_coeffs;
  std::vector<double> coeffs;
  std::vector<DecayTable> decays;
  std::vector<double> basis;

  Channels(const Parameters<scalar_t>& parameters, int64_t first, int64_t last)
      : num_coeffs(parameters.num_coeffs),
        coeffs(parameters.coeffs + first * num_coeffs, parameters.coeffs + last * num_coeffs),
        decays(parameters.decay + first, parameters.decay + last),
        basis(num_coeffs * kTile) {}

  const double* coeffs_of(int64_t d) const { return coeffs.data() + d * num_coeffs; }
};

// out [D, length], for the channels [first_channel, last_channel).
template <typename scalar_t>
void forward(
    const Parameters<scalar_t>& parameters, int64_t first_channel, int64_t last_channel, scalar_t* out) {
  const int64_t length = parameters.length;
  Channels<scalar_t> channels(parameters, first_channel, last_channel);
  simd::run_with_widest_vectors([&](auto) HYENAREC_INLINE_LAMBDA {
    double sum[kTile];
    for (int64_t first = 0; first < length; first += kTile) {
      const int64_t count = std::min(kTile, length - first);
      fill_basis(channels.basis.data(), channels.num_coeffs, first, parameters.horizon);
      for (int64_t d = 0; d < last_channel - first_channel; ++d) {
        combine(channels.coeffs_of(d), channels.basis.data(), channels.num_coeffs, sum);
        const DecayTable& decay = channels.decays[d];
        const double scale = decay.at_tile(first);
        scalar_t* row = out + (first_channel + d) * length + first;
        for (int64_t i = 0; i < count; ++i) row[i] = static_cast<scalar_t>(scale * decay.within[i] * sum[i]);
      }
    }
  });
}

// d/dcoeffs[n] = sum_lag w P_n and d/ddecay = -sum_lag lag w sum_n coeffs[n] P_n, where w = grad exp(-decay
// lag), for the channels [first_channel, last_channel), each unless it is nullptr. grad is [D, length].
template <typename scalar_t>
void backward(
    const scalar_t* grad, const Parameters<scalar_t>& parameters, int64_t first_channel, int64_t last_channel,
    scalar_t* coeffs_grad, scalar_t* decay_grad) {
  const int64_t length = parameters.length, count_channels = last_channel - first_channel;
  Channels<scalar_t> channels(parameters, first_channel, last_channel);
  const int64_t num_coeffs = channels.num_coeffs;
  std::vector<double> moments(count_channels * num_coeffs, 0.0);
  std::vector<double> lag_moments(count_channels, 0.0);
  simd::run_with_widest_vectors([&](auto) HYENAREC_INLINE_LAMBDA {
    double sum[kTile], weighted[kTile], lag_terms[kTile];
    for (int64_t first = 0; first < length; first += kTile) {
      const int64_t count = std::min(kTile, length - first);
      fill_basis(channels.basis.data(), num_coeffs, first, parameters.horizon);
      for (int64_t d = 0; d < count_channels; ++d) {
        const DecayTable& decay = channels.decays[d];
        const double scale = decay.at_tile(first);
        const scalar_t* row = grad + (first_channel + d) * length + first;
        for (int64_t i = 0; i < count; ++i)
          weighted[i] = scale * decay.within[i] * static_cast<double>(row[i]);
        std::fill(weighted + count, weighted + kTile, 0.0);
        add_moments(weighted, channels.basis.data(), num_coeffs, moments.data() + d * num_coeffs);
        combine(channels.coeffs_of(d), channels.basis.data(), num_coeffs, sum);
        // First all products, in vectors, then their sum in the order of the lags.
        for (int64_t i = 0; i < kTile; ++i)
          lag_terms[i] = static_cast<double>(first + i) * weighted[i] * sum[i];
        for (int64_t i = 0; i < count; ++i) lag_moments[d] -= lag_terms[i];
      }
    }
  });
  if (coeffs_grad) std::copy(moments.begin(), moments.end(), coeffs_grad + first_channel * num_coeffs);
  if (decay_grad) std::copy(lag_moments.begin(), lag_moments.end(), decay_grad + first_channel);
}

}  // namespace hyenarec::cpu::legendre_kernel
