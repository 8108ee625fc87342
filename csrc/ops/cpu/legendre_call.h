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
      fill_weights(problem_, basis_, tile * lanes_, channels_of(tile), lanes_, weights_at(tile));
    });
  }

  // make_source(V{}, task) gives the Source of a task.
  template <typename MakeSource>
  void forward(const MakeSource& make_source) {
    for_each_task([&](auto lanes, const Task& task, Scratch& scratch) HYENAREC_INLINE_LAMBDA {
      auto source = make_source(lanes, task);
      forward_task<decltype(lanes)>(
          *problem_.tables, task.group, weights_of<decltype(lanes)>(task), source, scratch);
    });
  }

  template <typename MakeSource>
  ParameterGradients backward(const Wanted& wanted, const MakeSource& make_source) {
    auto sums = make_sums(sum_rows().count());
    for_each_task([&](auto lanes, const Task& task, Scratch& scratch) HYENAREC_INLINE_LAMBDA {
      auto source = make_source(lanes, task);
      backward_task<decltype(lanes)>(
          *problem_.tables, task.group, weights_of<decltype(lanes)>(task), wanted, source, scratch,
          sums.of(task));
    });
    return wanted.parameters ? parameter_gradients(sums) : ParameterGradients{};
  }

  // Room for sums of every task: rows of a vector's lanes.
  struct Sums {
    std::vector<double> values;
    int64_t rows, lanes;

    double* of(const Task& task) { return values.data() + task.index * rows * lanes; }
  };
  Sums make_sums(int64_t rows) const {
    return {std::vector<double>(groups() * tiles_ * rows * lanes_), rows, lanes_};
  }
  // A channel's sums over all tasks, always added in the same order.
  std::vector<double> total(const Sums& sums, int64_t channel) const {
    std::vector<double> total(sums.rows, 0.0);
    for (int64_t group = 0; group < groups(); ++group) {
      const double* of_task = sums.values.data() + (group * tiles_ + channel / lanes_) * sums.rows * lanes_;
      for (int64_t row = 0; row < sums.rows; ++row) total[row] += of_task[row * lanes_ + channel % lanes_];
    }
    return total;
  }

 private:
  int64_t groups() const { return static_cast<int64_t>(problem_.groups.size()); }
  int64_t weight_rows() const { return 3 * problem_.chunk() + 1 + problem_.num_coeffs(); }
  int64_t channels_of(int64_t tile) const { return std::min(lanes_, problem_.channels - tile * lanes_); }
  SumRows sum_rows() const { return {problem_.num_coeffs(), problem_.chunk()}; }
  compute_t* weights_at(int64_t tile) const { return weights_ + tile * weight_rows() * lanes_; }

  template <typename V>
  TileWeights<V> weights_of(const Task& task) const {
    return {reinterpret_cast<const V*>(weights_at(task.index % tiles_)), problem_.chunk()};
  }

  // Tasks are numbered by group, then by tile: those of the longest sequences come first.
  template <typename Run>
  void for_each_task(const Run& run) {
    run_tasks(groups() * tiles_, [&](int64_t index, Scratch& scratch) {
      const int64_t tile = index % tiles_;
      const Task task{index, problem_.groups[index / tiles_], tile * lanes_, channels_of(tile)};
      simd::run_with_widest_vectors([&](auto bytes) HYENAREC_INLINE_LAMBDA {
        run(simd::Vector<compute_t, bytes() / sizeof(compute_t)>{}, task, scratch);
      });
    });
  }

  // Carries the sums over all tasks to the parameters.
  ParameterGradients parameter_gradients(const Sums& sums) const {
    const int64_t n = problem_.num_coeffs(), chunk = problem_.chunk();
    ParameterGradients gradients{
        at::empty(coeffs_.sizes(), coeffs_.options()), at::empty(decay_.sizes(), decay_.options()),
        at::empty(decay_.sizes(), decay_.options())};
    auto* coeffs_grad = gradients.coeffs.template mutable_data_ptr<compute_t>();
    auto* decay_grad = gradients.decay.template mutable_data_ptr<compute_t>();
    auto* skip_grad = gradients.skip.template mutable_data_ptr<compute_t>();
    for (int64_t d = 0; d < problem_.channels; ++d) {
      const auto total = this->total(sums, d);
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
