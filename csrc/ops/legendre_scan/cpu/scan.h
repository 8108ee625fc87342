// The Legendre scan on the CPU. Start reading here; docs/scan.md explains the method and says which step is
// where. No torch in this folder's headers but scan_tensors.h.
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
#include <memory>
#include <vector>

#include "../../common/cpu/threads.h"
#include "backward.h"
#include "forward.h"

namespace hyenarec::scan {

// Where the gradients of a call's parameters go; nullptr: not wanted.
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

// One call. What `arguments` and `sequences` point to outlives it.
template <typename compute_t>
class ScanCall {
 public:
  ScanCall(const Threads& threads, const Sequences& sequences, const ScanArguments<compute_t>& arguments)
      : threads_(threads),
        sequences_(sequences),
        arguments_(arguments),
        longest_(sequences.longest()),
        tables_(segment_tables<compute_t>(
            arguments.horizon, legendre_chunk_length(arguments.num_coeffs), arguments.num_coeffs, longest_)),
        groups_(make_groups(sequences)),
        contractions_(*tables_, longest_),
        lanes_(simd::widest_vector_bytes() / sizeof(compute_t)),
        vectors_((arguments.channels + lanes_ - 1) / lanes_),
        vectors_per_task_(choose_vectors_per_task()),
        parameters_(parameter_memory_.get<compute_t>(vectors_ * parameter_rows() * lanes_)) {
    run_tasks<Scratch>(threads_, (vectors_ + 1) / 2, [&](int64_t pair, Scratch& scratch) {
      simd::run_with_widest_vectors([&](auto bytes) HYENAREC_INLINE_LAMBDA {
        using V = simd::Vector<compute_t, bytes() / sizeof(compute_t)>;
        const int64_t first = 2 * pair;
        in_runs<2>(std::min<int64_t>(vectors_ - first, 2), [&](auto size, int64_t) HYENAREC_INLINE_LAMBDA {
          fill_parameters<size(), V>(first, scratch);
        });
      });
    });
  }

  int64_t chunk() const { return tables_->chunk; }

  // Whether a backward pass reads saved states.
  bool reads_states(const GradientMask& wanted) const {
    return wanted.needs_states() && longest_ > tables_->segment;
  }

  // make_io(V{}, task) gives the ScanIO of a task. `states` takes what a backward pass will need, if it has
  // data.
  template <typename MakeIO>
  void forward(const States<compute_t>& states, const MakeIO& make_io) {
    const auto saved = saved_states(states.data);
    if (saved.data) {  // leave no row undefined
      const int64_t row = arguments_.num_coeffs * arguments_.channels;
      std::fill(saved.data + saved.rows * row, saved.data + states.rows * row, compute_t(0));
    }
    for_each_task(
        make_io, [&](const auto& scan, const Task& task, auto& io, Scratch& scratch)
                     HYENAREC_INLINE_LAMBDA { forward_task(scan, task, saved, io, scratch); });
  }

  template <typename MakeIO>
  void backward(
      const GradientMask& wanted, const States<const compute_t>& states,
      const ParameterGradients<compute_t>& gradients, const MakeIO& make_io) {
    const auto saved = saved_states(states.data);
    auto sums = make_sums(GradientLayout(contractions_).count);
    for_each_task(
        make_io, [&](const auto& scan, const Task& task, auto& io, Scratch& scratch) HYENAREC_INLINE_LAMBDA {
          BackwardTask{scan, task, wanted, io, scratch, sums}.run(saved);
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
      const double* from = sums.values.data() + sums.start(group, channel / lanes_) + channel % lanes_;
      for (int64_t row = 0; row < sums.rows; ++row) total[row] += from[row * lanes_];
    }
    return total;
  }

 private:
  // As they lie behind `data`; none without, or with N = 0.
  template <typename value_t>
  SavedStates<value_t> saved_states(value_t* data) const {
    SavedStates<value_t> saved{data, arguments_.num_coeffs, arguments_.channels, 0, {}};
    for (int64_t s = 0; data && s < sequences_.count; ++s) {
      saved.first_row.push_back(saved.rows);
      saved.rows += std::max<int64_t>(sequences_.size(s) - 1, 0) / tables_->segment;
    }
    return saved;
  }

  int64_t groups() const { return static_cast<int64_t>(groups_.size()); }
  int64_t parameter_rows() const { return plain_parameter_rows(chunk()) + contractions_.rows; }
  compute_t* parameters_at(int64_t vector) const { return parameters_ + vector * parameter_rows() * lanes_; }
  int64_t channels_of(int64_t vector) const {
    return std::min(lanes_, arguments_.channels - vector * lanes_);
  }

  // All parameters of `size` neighbouring vectors.
  template <int size, typename V>
  HYENAREC_INLINE void fill_parameters(int64_t vector, Scratch& scratch) {
    for (int64_t v = vector; v < vector + size; ++v)
      fill_plain_parameters(*tables_, arguments_, v * lanes_, channels_of(v), lanes_, parameters_at(v));
    V* const contracted = reinterpret_cast<V*>(parameters_at(vector)) + plain_parameter_rows(chunk());
    for (const auto* part : contractions_.parts()) {
      if (part->count() == 0) continue;
      const int64_t degrees = part->num_degrees();
      scratch.restart();
      V* const coeffs = scratch.get<V>(size * degrees);
      for (int m = 0; m < size; ++m)
        fill_coefficients(
            arguments_, *part, (vector + m) * lanes_, channels_of(vector + m), lanes_,
            reinterpret_cast<compute_t*>(coeffs + m * degrees));
      for (int64_t i = 0; i < part->count(); ++i)
        contract<size, V>(
            part->tables->chunks[i].transfer.data(), part->shape(i), {coeffs, degrees},
            {contracted + part->rows[i], parameter_rows()});
    }
  }

  // As many as leave a task for every thread. No result depends on it.
  int64_t choose_vectors_per_task() const {
    int64_t width = kMaxVectors;
    while (width > 1 && groups() * ((vectors_ + width - 1) / width) < threads_.count) width /= 2;
    return width;
  }

  // Calls run(scan, task, io, scratch). Tasks are numbered by group first: those of the longest sequences
  // come first.
  template <typename MakeIO, typename Run>
  void for_each_task(const MakeIO& make_io, const Run& run) {
    const int64_t tiles = (vectors_ + vectors_per_task_ - 1) / vectors_per_task_;
    run_tasks<Scratch>(threads_, groups() * tiles, [&](int64_t index, Scratch& scratch) {
      const int64_t group = index / tiles, first = index % tiles * vectors_per_task_;
      const int64_t vectors = std::min(vectors_per_task_, vectors_ - first);
      const Task task{groups_[group], group, first, vectors, channels_of(first + vectors - 1)};
      scratch.restart();
      simd::run_with_widest_vectors([&](auto bytes) HYENAREC_INLINE_LAMBDA {
        using V = simd::Vector<compute_t, bytes() / sizeof(compute_t)>;
        const Scan<V> scan{*tables_, contractions_, reinterpret_cast<const V*>(parameters_at(first))};
        auto io = make_io(V{}, task);
        run(scan, task, io, scratch);
      });
    });
  }

  // Carries the sums over all tasks to the parameters.
  void store_gradients(const Sums& sums, const ParameterGradients<compute_t>& gradients) const {
    const GradientLayout layout(contractions_);
    const int64_t n = arguments_.num_coeffs;
    std::vector<double> coeffs(n);
    for (int64_t d = 0; d < arguments_.channels; ++d) {
      const auto total = this->total(sums, d);
      const double* lags = total.data() + layout.lags;
      const NearKernel kernel(*tables_, arguments_, d);
      double decay = total[layout.far_decay];
      for (int64_t lag = 0; lag < chunk(); ++lag)
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
    const double* lags = total + layout.lags;
    for (int64_t k = 0; k < arguments_.num_coeffs; ++k) {
      coeffs[k] = 0.0;
      for (int64_t lag = 0; lag < chunk(); ++lag)
        coeffs[k] += tables_->basis[k * chunk() + lag] * kernel.decay_from_start[lag] * lags[lag];
    }
    for (const auto* part : contractions_.parts())
      part->add_coefficient_grads(total + part->first_sum, coeffs);
  }

  const Threads threads_;
  const Sequences sequences_;
  const ScanArguments<compute_t> arguments_;
  const int64_t longest_;  // events of the longest sequence
  const std::shared_ptr<const SegmentTables<compute_t>> tables_;
  const std::vector<Group> groups_;
  const Contractions<compute_t> contractions_;
  const int64_t lanes_;
  const int64_t vectors_;
  const int64_t vectors_per_task_;
  Scratch parameter_memory_;
  compute_t* const parameters_;
};

}  // namespace hyenarec::scan
