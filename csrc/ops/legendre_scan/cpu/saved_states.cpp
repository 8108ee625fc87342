#include "saved_states.h"

#include "segment_tables.h"

namespace hyenarec::detail {

std::array<c10::SymInt, 3> shape_of_legendre_states(
    const at::Tensor& activations, const at::Tensor& coeffs, const c10::SymInt& horizon,
    const OptionalTensor& offsets) {
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

}  // namespace hyenarec::detail
