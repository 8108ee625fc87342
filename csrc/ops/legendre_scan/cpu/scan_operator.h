// The CPU kernels of the operators that scan, legendre_conv and hyena_mixer: from tensors to a ScanCall and
// back.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>

#include <initializer_list>

#include "../../common/cpu/tensors.h"
#include "../../common/operators.h"
#include "../../common/raw_data.h"
#include "saved_states.h"
#include "scan.h"

namespace hyenarec::scan {

// Bytes of a call's results up to which they stay in the cache. Measured with a matrix product that reads
// them right afterwards (32 MiB of third level cache): 4 MiB are better off in it, 8 MiB are not.
constexpr size_t kMaxCachedBytes = 6 << 20;

// Whether a call that writes these contiguous results [.., channels] writes them past the cache: where they
// are more than a cache can be expected to hold until they are read. Then the processor neither fetches the
// lines that they overwrite nor gives up for them what is still to be read. Rows must fill lines. [0] isn't
// wanted.
inline bool go_past_cache(std::initializer_list<at::Tensor> results) {
  size_t bytes = 0;
  for (const auto& result : results) {
    if (result.numel() == 0) continue;
    const auto address = reinterpret_cast<uintptr_t>(result.const_data_ptr());
    if (address % kLine != 0 || result.size(-1) * result.element_size() % kLine != 0) return false;
    bytes += result.nbytes();
  }
  return bytes > kMaxCachedBytes;
}

// States of ScanCall::forward and backward; undefined: none.
template <typename compute_t>
States<compute_t> states_of(const at::Tensor& states) {
  return {data_or_null<compute_t>(states), states.defined() ? states.size(0) : 0};
}

// `Inputs` holds a call's activations and the operator's own parameters. It has
//
//   Arguments, BackwardArguments          the operator's
//   kName, kActivation                    for messages
//   kFirstParameter                       where coeffs stands among the gradients, before decay and skip
//   Inputs(arguments), output_sizes()
//   rows<scalar_t>(sequences)             what a ScanIO reads, to which the kernels add out or grad
//   add_gradients<scalar_t>(rows, gradients)
//                                         and where activations' gradients go; returns go_past_cache's answer
//   wanted(gradients)                     which gradients of the scan's input and output these need
//   make_io<V>(rows, chunk, task, sums)   the ScanIO of a task; sums is nullptr in a forward pass
//   sum_rows(rows)                        of a task's sums for the gradients of the operator's own parameters
//   finish(call, sums, rows, gradients)   what becomes of these sums
template <typename Inputs>
class ScanKernels {
 public:
  using Arguments = typename Inputs::Arguments;
  using BackwardArguments = typename Inputs::BackwardArguments;

  static at::Tensor forward(const Arguments& arguments) { return run(arguments, {}); }

  static Tensors<2> forward_with_states(const Arguments& arguments) {
    const auto states = detail::empty_legendre_states(arguments);
    return {run(arguments, states), states};
  }

  static Tensors<6> backward(const BackwardArguments& arguments) {
    const auto& [grad, forward, needs_grad, given_states] = arguments;
    const ScanKernels kernels(Arguments::kBackward, forward);
    const auto output_grad = readable(grad);
    const auto gradients = detail::empty_gradients(forward, needs_grad);
    const auto* of_parameters = &gradients[Inputs::kFirstParameter];
    GradientMask wanted = Inputs::wanted(gradients);
    for (int i = 0; i < 3; ++i) wanted.parameters = wanted.parameters || of_parameters[i].numel() > 0;
    auto states = given_states ? given_states->contiguous() : at::Tensor();
    kernels.dispatch([&](auto zero) {
      using scalar_t = decltype(zero);
      using compute_t = at::opmath_type<scalar_t>;
      auto rows = kernels.inputs_.template rows<scalar_t>(kernels.sequences_);
      rows.grad = rows_of<scalar_t>(output_grad);
      rows.past_cache = Inputs::template add_gradients<scalar_t>(rows, gradients);
      auto call = kernels.template call<compute_t>();
      if (!states.defined() && call.reads_states(wanted)) states = std::get<1>(forward_with_states(forward));
      auto sums = call.make_sums(Inputs::sum_rows(rows));
      call.backward(
          wanted, states_of<const compute_t>(states),
          {data_or_null<compute_t>(of_parameters[0]), data_or_null<compute_t>(of_parameters[1]),
           data_or_null<compute_t>(of_parameters[2])},
          [&](auto lanes, const Task& task) HYENAREC_INLINE_LAMBDA {
            return Inputs::template make_io<decltype(lanes)>(rows, call.chunk(), task, &sums);
          });
      Inputs::finish(call, sums, rows, gradients);
    });
    return std::tuple_cat(gradients);
  }

 private:
  ScanKernels(const char* op, const Arguments& arguments)
      : inputs_(arguments),
        activation_(std::get<0>(arguments.each())),
        offsets_(contiguous_or_undefined(arguments.offsets)),
        coeffs_(arguments.coeffs.contiguous()),
        decay_(arguments.decay.contiguous()),
        skip_(contiguous_or_undefined(arguments.skip)),
        horizon_(arguments.horizon.expect_int()) {
    detail::check_cpu_activation_type({op, Inputs::kActivation, activation_});
    detail::check_decay_values(op, decay_);
    sequences_ = make_sequences(op, activation_, offsets_, horizon_);
  }

  // `states` takes what the backward pass needs; undefined: nothing will.
  static at::Tensor run(const Arguments& arguments, const at::Tensor& states) {
    const ScanKernels kernels(Inputs::kName, arguments);
    const auto out = at::empty(kernels.inputs_.output_sizes(), kernels.activation_.options());
    if (out.numel() == 0) {
      if (states.defined()) states.zero_();
      return out;
    }
    kernels.dispatch([&](auto zero) {
      using scalar_t = decltype(zero);
      using compute_t = at::opmath_type<scalar_t>;
      auto rows = kernels.inputs_.template rows<scalar_t>(kernels.sequences_);
      rows.out = rows_of_result<scalar_t>(out);
      rows.past_cache = go_past_cache({out});
      auto call = kernels.template call<compute_t>();
      call.forward(states_of<compute_t>(states), [&](auto lanes, const Task& task) HYENAREC_INLINE_LAMBDA {
        return Inputs::template make_io<decltype(lanes)>(rows, call.chunk(), task, nullptr);
      });
    });
    return out;
  }

  // Calls run(scalar_t{}) with the type of the activations.
  template <typename Run>
  void dispatch(const Run& run) const {
    AT_DISPATCH_FLOATING_TYPES_AND(
        at::kBFloat16, activation_.scalar_type(), Inputs::kName, [&] { run(scalar_t{}); });
  }

  template <typename compute_t>
  ScanCall<compute_t> call() const {
    return {
        all_threads(),
        sequences_,
        {coeffs_.size(0), coeffs_.size(1), coeffs_.const_data_ptr<compute_t>(),
         decay_.const_data_ptr<compute_t>(), data_or_null<const compute_t>(skip_), horizon_}};
  }

  const Inputs inputs_;
  const at::Tensor activation_, offsets_, coeffs_, decay_, skip_;
  const int64_t horizon_;
  Sequences sequences_;
};

}  // namespace hyenarec::scan
