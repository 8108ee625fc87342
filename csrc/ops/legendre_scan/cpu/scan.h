// The Legendre scan on the CPU. Start reading here; docs/scan.md explains the method. No torch in this
// folder's headers but scan_tensors.h.
//
//   scan.h                 ScanCall: prepares the parameters, runs the tasks, adds up gradients
//   tasks.h                cuts a call into tasks: a few sequences by a few vectors of channels
//   segment_tables.h       the constants of both levels of the scan
//   parameters.h           what a call's parameters make of them
//   forward.h, backward.h  a task from its first chunk to its last and back
//   stages.h               their stages, each directly above its backward stage
//   segment.h, memory.h    what the stages work on
//   chunk.h, state.h       the arithmetic of the stages on vectors
//
// An operator says where the scan's inputs come from and where its results go: its ScanIO. The members are
// called for a chunk of one sequence, given by its index `s` in the task, and for all vectors of the task:
// they walk memory row by row, each row's neighbouring channels at once.
//
//   load_input(s, begin, rows, z)         z = what the kernel is convolved with
//   store_output(s, begin, rows, y)       y = kernel * z goes where it belongs; y may be overwritten
//   load_output_grad(s, begin, rows, dy)  dy = the gradient of y
//   store_gate_grad(s, begin, rows, y)    of the gate behind the convolution; after load_output_grad
//   store_input_grad(s, begin, rows, dz)  after load_input and store_gate_grad
//   end_chunk()                           after the same chunk of all sequences
//   watch_inputs, watch_forward, watch_backward(s, begin, ahead)
//                                         tells a LookAhead which rows load_input, a forward sweep and a
//                                         backward sweep will touch in a chunk
//
// Those for gradients belong to a backward pass, whose chunks come from the last to the first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../../common/cpu/threads.h"
#include "backward.h"
#include "forward.h"

namespace hyenarec::scan {

// A call's parameters: coeffs [D, N], decay [D], skip [D] or nullptr.
template <typename compute_t>
struct ScanArguments {
  int64_t channels, num_coeffs;
  const compute_t *coeffs, *decay, *skip;
  int64_t horizon;
};

// Where their gradients go; nullptr: not wanted.
template <typename compute_t>
struct ParameterGradients {
  compute_t *coeffs, *decay, *skip;
};

// States saved for the backward pass, [rows, N, D]; see saved_states.h. Without data there are none.
template <typename value_t>
struct States {
  value_t* data = nullptr;
  int64_t rows = 0;
};

// Sums over tasks, as rows of a vector's lanes, all zero at first: [group][vector][rows, lanes].
struct Sums {
  std::vector<double> values;
  int64_t vectors, rows, lanes;

  double* of(const Task& task, int64_t v) {
    return values.data() + (task.group_index * vectors + task.first_vector + v) * rows * lanes;
  }
};

// One call. What `arguments` and `sequences` point to outlives it.
template <typename compute_t>
class ScanCall {
 public:
  ScanCall(const Threads& threads, const Sequences& sequences, const ScanArguments<compute_t>& arguments)
      : threads_(threads),
        sequences_(sequences),
        problem_{
            segment_tables<compute_t>(
                arguments.horizon, legendre_chunk_length(arguments.num_coeffs), arguments.num_coeffs,
                sequences.longest()),
            arguments.channels,
            arguments.coeffs,
            arguments.decay,
            arguments.skip,
            sequences.longest(),
            make_groups(sequences)},
        contractions_(*problem_.tables, problem_.longest),
        lanes_(simd::widest_vector_bytes() / sizeof(compute_t)),
        vectors_((problem_.channels + lanes_ - 1) / lanes_),
        vectors_per_task_(choose_vectors_per_task()) {
    parameters_ = parameter_memory_.get<compute_t>(vectors_ * parameter_rows() * lanes_);
    run_tasks<Scratch>(threads_, (vectors_ + 1) / 2, [&](int64_t pair, Scratch& scratch) {
      simd::run_with_widest_vectors([&](auto bytes) HYENAREC_INLINE_LAMBDA {
        using V = simd::Vector<compute_t, bytes() / sizeof(compute_t)>;
        if (2 * pair + 1 < vectors_)
          fill_parameters<2, V>(2 * pair, scratch);
        else
          fill_parameters<1, V>(2 * pair, scratch);
      });
    });
  }

  int64_t chunk() const { return problem_.chunk(); }

  // Whether a backward pass reads saved states.
  bool reads_states(const GradientMask& wanted) const {
    return wanted.needs_states() && problem_.longest > problem_.tables->segment;
  }

  // make_io(V{}, task) gives the ScanIO of a task. `states` takes what a backward pass will need, if it has
  // data.
  template <typename MakeIO>
  void forward(const States<compute_t>& states, const MakeIO& make_io) {
    const auto saved = saved_states(states.data);
    if (saved.data) {  // leave no row undefined
      const int64_t row = problem_.num_coeffs() * problem_.channels;
      std::fill(saved.data + saved.rows * row, saved.data + states.rows * row, compute_t(0));
    }
    for_each_task([&](auto lanes, const Task& task, Scratch& scratch) HYENAREC_INLINE_LAMBDA {
      using V = decltype(lanes);
      auto io = make_io(lanes, task);
      const TaskParameters<V> parameters(*this, task);
      forward_task<V>({*problem_.tables, contractions_, parameters.of_vector}, task, saved, io, scratch);
    });
  }

  template <typename MakeIO>
  void backward(
      const GradientMask& wanted, const States<const compute_t>& states,
      const ParameterGradients<compute_t>& gradients, const MakeIO& make_io) {
    const auto saved = saved_states(states.data);
    auto sums = make_sums(GradientLayout(*problem_.tables).count);
    for_each_task([&](auto lanes, const Task& task, Scratch& scratch) HYENAREC_INLINE_LAMBDA {
      using V = decltype(lanes);
      auto io = make_io(lanes, task);
      const TaskParameters<V> parameters(*this, task);
      double* sums_of_vector[kMaxVectors];
      for (int64_t v = 0; v < task.vectors; ++v) sums_of_vector[v] = sums.of(task, v);
      backward_task<V>(
          {*problem_.tables, contractions_, parameters.of_vector}, task, wanted, saved, io, scratch,
          sums_of_vector);
    });
    if (wanted.parameters) store_gradients(sums, gradients);
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
  // Those of a task's vectors. Vectors that the task doesn't have get the last one's.
  template <typename V>
  struct TaskParameters {
    ScanParameters<V> of_vector[kMaxVectors];

    TaskParameters(const ScanCall& call, const Task& task)
        : of_vector{of(call, task, 0), of(call, task, 1), of(call, task, 2), of(call, task, 3)} {}
    static ScanParameters<V> of(const ScanCall& call, const Task& task, int64_t v) {
      const int64_t vector = task.first_vector + std::min(v, task.vectors - 1);
      return {reinterpret_cast<const V*>(call.parameters_at(vector)), call.problem_.chunk()};
    }
  };

  // As they lie behind `data`; none without, or with N = 0.
  template <typename value_t>
  SavedStates<value_t> saved_states(value_t* data) const {
    SavedStates<value_t> saved;
    if (!data) return saved;
    saved.data = data;
    saved.num_coeffs = problem_.num_coeffs();
    saved.channels = problem_.channels;
    for (int64_t s = 0; s < sequences_.count; ++s) {
      saved.first_row.push_back(saved.rows);
      saved.rows += std::max<int64_t>(sequences_.size(s) - 1, 0) / problem_.tables->segment;
    }
    return saved;
  }

  int64_t groups() const { return static_cast<int64_t>(problem_.groups.size()); }
  int64_t parameter_rows() const { return plain_parameter_rows(problem_.chunk()) + contractions_.rows; }
  compute_t* parameters_at(int64_t vector) const { return parameters_ + vector * parameter_rows() * lanes_; }

  // All parameters of `size` neighbouring vectors.
  template <int size, typename V>
  HYENAREC_INLINE void fill_parameters(int64_t vector, Scratch& scratch) {
    const int64_t contracted = plain_parameter_rows(problem_.chunk()) * lanes_;
    const auto channels_of = [&](int m) {
      return std::min(lanes_, problem_.channels - (vector + m) * lanes_);
    };
    for (int m = 0; m < size; ++m)
      fill_plain_parameters(
          problem_, (vector + m) * lanes_, channels_of(m), lanes_, parameters_at(vector + m));
    for (const auto* part : contractions_.parts()) {
      if (part->count() == 0) continue;
      const int64_t degrees = part->num_degrees();
      auto* const coeffs = scratch.get<V>(size * degrees);
      for (int m = 0; m < size; ++m)
        fill_coefficients(
            problem_, *part, (vector + m) * lanes_, channels_of(m), lanes_,
            reinterpret_cast<compute_t*>(coeffs + m * degrees));
      for (int64_t i = 0; i < part->count(); ++i) {
        V* const to = reinterpret_cast<V*>(parameters_at(vector) + contracted) + part->rows[i];
        contract<size, V>(
            part->tables->chunks[i].transfer.data(), part->shape(i), {coeffs, degrees},
            {to, parameter_rows()});
      }
    }
  }

  // As many as leave a task for every thread. No result depends on it.
  int64_t choose_vectors_per_task() const {
    int64_t width = kMaxVectors;
    while (width > 1 && groups() * ((vectors_ + width - 1) / width) < threads_.count) width /= 2;
    return width;
  }

  // Tasks are numbered by group first: those of the longest sequences come first.
  template <typename Run>
  void for_each_task(const Run& run) {
    const int64_t tiles = (vectors_ + vectors_per_task_ - 1) / vectors_per_task_;
    run_tasks<Scratch>(threads_, groups() * tiles, [&](int64_t index, Scratch& scratch) {
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
  void store_gradients(const Sums& sums, const ParameterGradients<compute_t>& gradients) const {
    const GradientLayout layout(*problem_.tables);
    const int64_t n = problem_.num_coeffs();
    std::vector<double> coeffs(n);
    for (int64_t d = 0; d < problem_.channels; ++d) {
      const auto total = this->total(sums, d);
      const double* lags = total.data() + layout.lags;
      const NearKernel kernel(problem_, d);
      double decay = total[layout.far_decay];
      for (int64_t lag = 0; lag < problem_.chunk(); ++lag)
        decay -= static_cast<double>(lag) * kernel.decay_from_start[lag] * kernel.polynomial[lag] * lags[lag];
      find_coefficient_gradients(kernel, total.data(), layout, coeffs.data());
      if (gradients.coeffs) std::copy(coeffs.begin(), coeffs.end(), gradients.coeffs + d * n);
      if (gradients.decay) gradients.decay[d] = static_cast<compute_t>(decay);
      if (gradients.skip) gradients.skip[d] = static_cast<compute_t>(lags[0]);
    }
  }

  // coeffs [N] = the gradients of a channel's coefficients, through the near kernel and through the
  // contractions.
  void find_coefficient_gradients(
      const NearKernel& kernel, const double* total, const GradientLayout& layout, double* coeffs) const {
    const int64_t chunk = problem_.chunk();
    const double* lags = total + layout.lags;
    for (int64_t k = 0; k < problem_.num_coeffs(); ++k) {
      coeffs[k] = 0.0;
      for (int64_t lag = 0; lag < chunk; ++lag)
        coeffs[k] += problem_.tables->basis[k * chunk + lag] * kernel.decay_from_start[lag] * lags[lag];
    }
    const auto parts = contractions_.parts();
    for (size_t part = 0; part < parts.size(); ++part)
      parts[part]->add_coefficient_grads(total + layout.part(part), coeffs);
  }

  const Threads threads_;
  const Sequences sequences_;
  const Problem<compute_t> problem_;
  const Contractions<compute_t> contractions_;
  const int64_t lanes_;
  const int64_t vectors_;
  const int64_t vectors_per_task_;
  Scratch parameter_memory_;
  compute_t* parameters_ = nullptr;
};

}  // namespace hyenarec::scan
