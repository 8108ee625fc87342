// The states that a forward pass of the Legendre scan on the CPU saves for its backward pass: those carried
// from segment to segment (see segment_tables.h). From them the backward pass finds the states of a segment's
// chunks when it gets there, and needn't walk the whole history before. The backward pass on CUDA computes
// its own.
#pragma once

#include "../../common/operators.h"
#include "segment_tables.h"

namespace hyenarec::detail {

// Their shape, [rows, N, D], a sequence's one after another, from an operator's arguments. There
// are more rows than states, whose number depends on the values of horizon and offsets: two, and one for each
// 256 events (N <= 9) or 512 events.
template <typename Arguments>
std::array<c10::SymInt, 3> shape_of_legendre_states(const Arguments& arguments) {
  const at::Tensor &activations = std::get<0>(arguments.each()), &coeffs = arguments.coeffs;
  const auto& [horizon, offsets] = std::tie(arguments.horizon, arguments.offsets);
  // All without a branch, which would fix sizes that are symbols to what they are now: a chunk of
  // legendre_chunk_length(N) events, the shortest segments that a horizon can have (they get longer with it),
  // ...
  const c10::SymInt is_long = (coeffs.sym_size(1) / (kMaxShortChunkCoeffs + 1)).min(1);
  const c10::SymInt segment = kMinSegmentChunks * (kShortChunk + (kLongChunk - kShortChunk) * is_long);
  const auto first = activations.sym_size(0);
  const auto rows = offsets
                        ? first / segment * ((horizon - 1) / segment).min(1)  // 0 if none is longer than that
                        : first * ((activations.sym_size(1).max(1) - 1) / segment);
  // ... and two rows too many: sizes of 0 and 1 are other graphs.
  return {rows + 2, coeffs.sym_size(1), coeffs.sym_size(0)};
}

// Room for them, in coeffs' dtype.
template <typename Arguments>
at::Tensor empty_legendre_states(const Arguments& arguments) {
  return at::empty_symint(shape_of_legendre_states(arguments), arguments.coeffs.options());
}

// The Meta kernel of a forward pass that returns them beside the result of `meta`.
template <auto meta, typename Arguments = typename decltype(single_of(meta))::OfArguments>
Tensors<2> meta_with_states(const Arguments& arguments) {
  return {meta(arguments), empty_legendre_states(arguments)};
}

// BackwardArguments of an operator that scans, and the states that its forward pass saved on a CPU.
template <typename Forward>
struct ScanBackwardArguments {
  const at::Tensor& grad;
  Forward forward;
  std::array<bool, 6> needs_grad;
  const OptionalTensor& states;

  auto each() const { return std::tuple_cat(std::tie(grad), forward.each(), std::tie(needs_grad, states)); }
  void check() const {
    forward.check_backward(grad);
    if (!states) return;
    const Argument argument{Forward::kBackward, "states", *states};
    const auto shape = shape_of_legendre_states(forward);
    check_rank(argument, 3, "[rows, N, D]");
    for (const int i : {0, 1, 2})
      check_size(argument, i, shape[i], "[rows, N, D]", std::array{"rows", "N", "D"}[i]);
    check_type(argument, forward.coeffs.scalar_type(), "like coeffs");
    check_device(argument, {argument.op, "coeffs", forward.coeffs});
  }
};

}  // namespace hyenarec::detail
