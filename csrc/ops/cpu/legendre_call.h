// One call of an operator that scans: its parameters prepared, its tasks run, its parameters' gradients put
// together. Shared by legendre_conv and hyena_mixer.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "legendre_sweeps.h"

namespace hyenarec::scan {

struct ParameterGradients {
  at::Tensor coeffs, decay, skip;  // [D, N], [D], [D]
};

template <typename compute_t>
class Call {
 public:
  Call(
      const Sequences& sequences,
      const at::Tensor& coeffs,
      const at::Tensor& decay,
      const std::optional<at::Tensor>& skip,
      int64_t horizon)
      : coeffs_(coeffs.contiguous()),
        decay_(decay.contiguous()),
        skip_(skip ? skip->contiguous() : at::Tensor()),
        problem_{
            legendre_tables<compute_t>(
                horizon, legendre_chunk_length(coeffs.size(1)), coeffs.size(1), sequences.longest()),
            coeffs.size(0),
            coeffs_.template const_data_ptr<compute_t>(),
            decay_.template const_data_ptr<compute_t>(),
            skip_.defined() ? skip_.template const_data_ptr<compute_t>() : nullptr,
            make_groups(sequences)},
        basis_(near_basis(horizon, problem_.chunk(), problem_.num_coeffs())),
        lanes_(simd::widest_vector_bytes() / sizeof(compute_t)),
        tiles_((problem_.channels + lanes_ - 1) / lanes_) {
    weights_ = weight_memory_.get<compute_t>(tiles_ * weight_rows() * lanes_);
    run_tasks(tiles_, [&](int64_t tile, Scratch&) {
      fill_weights(problem_, basis_, tile * lanes_, channels_of(tile), lanes_, weights_of(tile));
    });
  }

  // make_source(V{}, group, first channel, number of channels) gives the Source of a task.
  template <typename MakeSource>
  void forward(const MakeSource& make_source) {
    for_each_task(
        make_source,
        [&](auto& source, const auto& weights, const Group& group, int64_t, Scratch& scratch)
            HYENAREC_INLINE_LAMBDA { forward_task(*problem_.tables, group, weights, source, scratch); });
  }

  template <typename MakeSource>
  ParameterGradients backward(const Wanted& wanted, const MakeSource& make_source) {
    const int64_t size = sum_rows().count() * lanes_;
    std::vector<double> sums(groups() * tiles_ * size);
    for_each_task(
        make_source, [&](auto& source, const auto& weights, const Group& group, int64_t task,
                         Scratch& scratch) HYENAREC_INLINE_LAMBDA {
          backward_task(*problem_.tables, group, weights, wanted, source, scratch, sums.data() + task * size);
        });
    return wanted.parameters ? parameter_gradients(sums) : ParameterGradients{};
  }

 private:
  int64_t groups() const { return static_cast<int64_t>(problem_.groups.size()); }
  int64_t weight_rows() const { return 3 * problem_.chunk() + 1 + problem_.num_coeffs(); }
  compute_t* weights_of(int64_t tile) { return weights_ + tile * weight_rows() * lanes_; }
  int64_t channels_of(int64_t tile) const { return std::min(lanes_, problem_.channels - tile * lanes_); }
  SumRows sum_rows() const { return {problem_.num_coeffs(), problem_.chunk()}; }

  // Tasks are numbered by group, then by tile: those of the longest sequences come first.
  template <typename MakeSource, typename Run>
  void for_each_task(const MakeSource& make_source, const Run& run) {
    run_tasks(groups() * tiles_, [&](int64_t task, Scratch& scratch) {
      const Group& group = problem_.groups[task / tiles_];
      const int64_t tile = task % tiles_;
      simd::run_with_widest_vectors([&](auto bytes) HYENAREC_INLINE_LAMBDA {
        using V = simd::Vector<compute_t, bytes() / sizeof(compute_t)>;
        auto source = make_source(V{}, group, tile * lanes_, channels_of(tile));
        const TileWeights<V> weights(reinterpret_cast<const V*>(weights_of(tile)), problem_.chunk());
        run(source, weights, group, task, scratch);
      });
    });
  }

  // Adds the tasks' sums up, always in the same order, and carries them to the parameters.
  ParameterGradients parameter_gradients(const std::vector<double>& sums) const {
    const int64_t n = problem_.num_coeffs(), chunk = problem_.chunk(), count = sum_rows().count();
    ParameterGradients gradients{
        at::empty(coeffs_.sizes(), coeffs_.options()), at::empty(decay_.sizes(), decay_.options()),
        at::empty(decay_.sizes(), decay_.options())};
    auto* coeffs_grad = gradients.coeffs.template mutable_data_ptr<compute_t>();
    auto* decay_grad = gradients.decay.template mutable_data_ptr<compute_t>();
    auto* skip_grad = gradients.skip.template mutable_data_ptr<compute_t>();
    std::vector<double> total(count);
    for (int64_t d = 0; d < problem_.channels; ++d) {
      std::fill(total.begin(), total.end(), 0.0);
      for (int64_t g = 0; g < groups(); ++g) {
        const double* task = sums.data() + (g * tiles_ + d / lanes_) * count * lanes_ + d % lanes_;
        for (int64_t row = 0; row < count; ++row) total[row] += task[row * lanes_];
      }
      const double* lags = total.data() + sum_rows().lags();
      const NearKernel kernel(problem_, basis_, d);
      double by_decay = total[sum_rows().far_decay()];
      for (int64_t lag = 0; lag < chunk; ++lag)
        by_decay -= static_cast<double>(lag) * kernel.fade[lag] * kernel.polynomial[lag] * lags[lag];
      for (int64_t k = 0; k < n; ++k) {
        double by_coefficient = total[k];
        for (int64_t lag = 0; lag < chunk; ++lag)
          by_coefficient += basis_[k * chunk + lag] * kernel.fade[lag] * lags[lag];
        coeffs_grad[d * n + k] = static_cast<compute_t>(by_coefficient);
      }
      decay_grad[d] = static_cast<compute_t>(by_decay);
      skip_grad[d] = static_cast<compute_t>(lags[0]);
    }
    return gradients;
  }

  const at::Tensor coeffs_, decay_, skip_;
  const Problem<compute_t> problem_;
  const std::vector<double> basis_;
  const int64_t lanes_;
  const int64_t tiles_;
  Scratch weight_memory_;
  compute_t* weights_ = nullptr;
};

}  // namespace hyenarec::scan
