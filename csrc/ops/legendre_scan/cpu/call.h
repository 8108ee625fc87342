// One call of an operator that scans: its parameters prepared, its tasks run, its parameters' gradients put
// together. Shared by legendre_conv and hyena_mixer.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "backward.h"
#include "forward.h"
#include "weights.h"

namespace hyenarec::scan {

struct ParameterGradients {
  at::Tensor coeffs, decay, skip;  // [D, N], [D], [D]
};

// Sums over tasks, as rows of a vector's lanes, all zero at first: [group][vector][rows, lanes].
struct Sums {
  std::vector<double> values;
  int64_t vectors, rows, lanes;

  double* of(const Task& task, int64_t v) {
    return values.data() + (task.group_index * vectors + task.first_vector + v) * rows * lanes;
  }
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
      : sequences_(sequences),
        coeffs_(coeffs.contiguous()),
        decay_(decay.contiguous()),
        skip_(skip ? skip->contiguous() : at::Tensor()),
        problem_{
            section_tables<compute_t>(
                horizon, legendre_chunk_length(coeffs.size(1)), coeffs.size(1), sequences.longest()),
            coeffs.size(0),
            coeffs_.template const_data_ptr<compute_t>(),
            decay_.template const_data_ptr<compute_t>(),
            skip_.defined() ? skip_.template const_data_ptr<compute_t>() : nullptr,
            sequences.longest(),
            make_groups(sequences)},
        contractions_(*problem_.tables, problem_.longest),
        lanes_(simd::widest_vector_bytes() / sizeof(compute_t)),
        vectors_((problem_.channels + lanes_ - 1) / lanes_),
        vectors_per_task_(choose_vectors_per_task()) {
    weights_ = weight_memory_.get<compute_t>(vectors_ * weight_rows() * lanes_);
    run_tasks((vectors_ + 1) / 2, [&](int64_t pair, Scratch& scratch) {
      simd::run_with_widest_vectors([&](auto bytes) HYENAREC_INLINE_LAMBDA {
        using V = simd::Vector<compute_t, bytes() / sizeof(compute_t)>;
        if (2 * pair + 1 < vectors_)
          fill_weights<2, V>(2 * pair, scratch);
        else
          fill_weights<1, V>(2 * pair, scratch);
      });
    });
  }

  int64_t chunk() const { return problem_.chunk(); }

  // Whether a backward pass reads saved states.
  bool reads_states(const Wanted& wanted) const {
    return needs_states(wanted) && problem_.longest > problem_.tables->section;
  }

  // make_source(V{}, task) gives the Source of a task. `states`, shaped by empty_legendre_states, takes those that the
  // backward pass needs; undefined: there will be none.
  template <typename MakeSource>
  void forward(const at::Tensor& states, const MakeSource& make_source) {
    const auto saved = saved_states(states.defined() ? states.mutable_data_ptr<compute_t>() : nullptr);
    if (saved.data)
      states.narrow(0, saved.rows, states.size(0) - saved.rows).zero_();  // none is left undefined
    for_each_task([&](auto lanes, const Task& task, Scratch& scratch) HYENAREC_INLINE_LAMBDA {
      using V = decltype(lanes);
      auto source = make_source(lanes, task);
      const Weights<V> weights(*this, task);
      forward_task<V>({*problem_.tables, contractions_, weights.of_vector}, task, saved, source, scratch);
    });
  }

  template <typename MakeSource>
  ParameterGradients backward(const Wanted& wanted, const at::Tensor& states, const MakeSource& make_source) {
    const auto saved = saved_states(states.defined() ? states.const_data_ptr<compute_t>() : nullptr);
    auto sums = make_sums(SumRows(*problem_.tables).count);
    for_each_task([&](auto lanes, const Task& task, Scratch& scratch) HYENAREC_INLINE_LAMBDA {
      using V = decltype(lanes);
      auto source = make_source(lanes, task);
      const Weights<V> weights(*this, task);
      double* sums_of_vector[kMaxVectors];
      for (int64_t v = 0; v < task.vectors; ++v) sums_of_vector[v] = sums.of(task, v);
      backward_task<V>(
          {*problem_.tables, contractions_, weights.of_vector}, task, wanted, saved, source, scratch,
          sums_of_vector);
    });
    return wanted.parameters ? parameter_gradients(sums) : ParameterGradients{};
  }

  Sums make_sums(int64_t rows) const {
    return {std::vector<double>(groups() * vectors_ * rows * lanes_), vectors_, rows, lanes_};
  }
  // A channel's sums over all groups, always added in the same order.
  std::vector<double> total(const Sums& sums, int64_t channel) const {
    std::vector<double> total(sums.rows, 0.0);
    for (int64_t group = 0; group < groups(); ++group) {
      const double* from =
          sums.values.data() + (group * vectors_ + channel / lanes_) * sums.rows * lanes_ + channel % lanes_;
      for (int64_t row = 0; row < sums.rows; ++row) total[row] += from[row * lanes_];
    }
    return total;
  }

 private:
  template <typename V>
  struct Weights {
    TileWeights<V> of_vector[kMaxVectors];

    // Vectors that the task doesn't have get the last one's.
    Weights(const Call& call, const Task& task)
        : of_vector{of(call, task, 0), of(call, task, 1), of(call, task, 2), of(call, task, 3)} {}
    static TileWeights<V> of(const Call& call, const Task& task, int64_t v) {
      const int64_t vector = task.first_vector + std::min(v, task.vectors - 1);
      return {reinterpret_cast<const V*>(call.weights_at(vector)), call.problem_.chunk()};
    }
  };

  // As they lie behind `data`, or none without.
  template <typename value_t>
  SavedStates<value_t> saved_states(value_t* data) const {
    SavedStates<value_t> saved;
    if (!data) return saved;
    saved.data = data;
    saved.num_coeffs = problem_.num_coeffs();
    saved.channels = problem_.channels;
    for (int64_t s = 0; s < sequences_.count; ++s) {
      saved.first_row.push_back(saved.rows);
      saved.rows += std::max<int64_t>(sequences_.size(s) - 1, 0) / problem_.tables->section;
    }
    return saved;
  }

  int64_t groups() const { return static_cast<int64_t>(problem_.groups.size()); }
  int64_t weight_rows() const { return plain_weight_rows(problem_.chunk()) + contractions_.rows; }
  compute_t* weights_at(int64_t vector) const { return weights_ + vector * weight_rows() * lanes_; }

  // All weights of `size` neighbouring vectors.
  template <int size, typename V>
  HYENAREC_INLINE void fill_weights(int64_t vector, Scratch& scratch) {
    const int64_t contracted = plain_weight_rows(problem_.chunk()) * lanes_;
    const auto channels_of = [&](int m) {
      return std::min(lanes_, problem_.channels - (vector + m) * lanes_);
    };
    for (int m = 0; m < size; ++m)
      fill_plain_weights(problem_, (vector + m) * lanes_, channels_of(m), lanes_, weights_at(vector + m));
    for (const auto* part : contractions_.parts()) {
      if (part->count() == 0) continue;
      const int64_t degrees = part->num_degrees();
      auto* const coeffs = scratch.get<V>(size * degrees);
      for (int m = 0; m < size; ++m)
        fill_coefficients(
            problem_, *part, (vector + m) * lanes_, channels_of(m), lanes_,
            reinterpret_cast<compute_t*>(coeffs + m * degrees));
      for (int64_t i = 0; i < part->count(); ++i) {
        V* const to = reinterpret_cast<V*>(weights_at(vector) + contracted) + part->rows[i];
        contract<size, V>(
            part->tables->chunks[i].transfer.data(), part->shape(i), {coeffs, degrees}, {to, weight_rows()});
      }
    }
  }

  // As many as leave a task for every thread. No result depends on it.
  int64_t choose_vectors_per_task() const {
    int64_t width = kMaxVectors;
    while (width > 1 && groups() * ((vectors_ + width - 1) / width) < at::get_num_threads()) width /= 2;
    return width;
  }

  // Tasks are numbered by group first: those of the longest sequences come first.
  template <typename Run>
  void for_each_task(const Run& run) {
    const int64_t tiles = (vectors_ + vectors_per_task_ - 1) / vectors_per_task_;
    run_tasks(groups() * tiles, [&](int64_t index, Scratch& scratch) {
      const int64_t group = index / tiles, first = index % tiles * vectors_per_task_;
      const int64_t vectors = std::min(vectors_per_task_, vectors_ - first);
      const int64_t last_channels = std::min(lanes_, problem_.channels - (first + vectors - 1) * lanes_);
      const Task task{problem_.groups[group], group, first, vectors, last_channels};
      simd::run_with_widest_vectors([&](auto bytes) HYENAREC_INLINE_LAMBDA {
        run(simd::Vector<compute_t, bytes() / sizeof(compute_t)>{}, task, scratch);
      });
    });
  }

  // Carries the sums over all tasks to the parameters.
  ParameterGradients parameter_gradients(const Sums& sums) const {
    const int64_t n = problem_.num_coeffs(), chunk = problem_.chunk();
    const SumRows rows(*problem_.tables);
    ParameterGradients gradients{
        at::empty(coeffs_.sizes(), coeffs_.options()), at::empty(decay_.sizes(), decay_.options()),
        at::empty(decay_.sizes(), decay_.options())};
    auto* coeffs_grad = gradients.coeffs.template mutable_data_ptr<compute_t>();
    auto* decay_grad = gradients.decay.template mutable_data_ptr<compute_t>();
    auto* skip_grad = gradients.skip.template mutable_data_ptr<compute_t>();
    std::vector<double> by_coeffs(n);
    for (int64_t d = 0; d < problem_.channels; ++d) {
      const auto total = this->total(sums, d);
      const double* lags = total.data() + rows.lags;
      const NearKernel kernel(problem_, d);
      double by_decay = total[rows.far_decay];
      for (int64_t lag = 0; lag < chunk; ++lag)
        by_decay -= static_cast<double>(lag) * kernel.fade[lag] * kernel.polynomial[lag] * lags[lag];
      for (int64_t k = 0; k < n; ++k) {
        by_coeffs[k] = 0.0;
        for (int64_t lag = 0; lag < chunk; ++lag)
          by_coeffs[k] += problem_.tables->basis[k * chunk + lag] * kernel.fade[lag] * lags[lag];
      }
      const auto parts = contractions_.parts();
      for (size_t part = 0; part < parts.size(); ++part)
        parts[part]->add_coefficient_grads(total.data() + rows.part(part), by_coeffs.data());
      std::copy(by_coeffs.begin(), by_coeffs.end(), coeffs_grad + d * n);
      decay_grad[d] = static_cast<compute_t>(by_decay);
      skip_grad[d] = static_cast<compute_t>(lags[0]);
    }
    return gradients;
  }

  const Sequences sequences_;
  const at::Tensor coeffs_, decay_, skip_;
  const Problem<compute_t> problem_;
  const Contractions<compute_t> contractions_;
  const int64_t lanes_;
  const int64_t vectors_;
  const int64_t vectors_per_task_;
  Scratch weight_memory_;
  compute_t* weights_ = nullptr;
};

}  // namespace hyenarec::scan
