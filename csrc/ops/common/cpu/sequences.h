// Where the sequences lie among the rows (events) of an activation, padded [B, L, D] or packed [total, D].
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>

namespace hyenarec {

struct Sequences {
  const int64_t* offsets;  // nullptr: padded, `length` rows each
  int64_t count;
  int64_t length;
  int64_t rows;

  int64_t start(int64_t sequence) const { return offsets ? offsets[sequence] : sequence * length; }
  int64_t size(int64_t sequence) const {
    return offsets ? offsets[sequence + 1] - offsets[sequence] : length;
  }
  // The sequence that a row belongs to.
  int64_t holding(int64_t row) const {
    return offsets ? std::upper_bound(offsets, offsets + count + 1, row) - offsets - 1 : row / length;
  }
  // Events of the longest sequence.
  int64_t longest() const {
    int64_t most = offsets || count == 0 ? 0 : length;
    for (int64_t s = 0; offsets && s < count; ++s) most = std::max(most, size(s));
    return most;
  }
};

inline void check_offsets_values(const char* op, const Sequences& sequences) {
  const int64_t* offsets = sequences.offsets;
  TORCH_CHECK(offsets[0] == 0, op, ": offsets must start at 0, got ", offsets[0]);
  for (int64_t s = 0; s < sequences.count; ++s) {
    TORCH_CHECK(
        offsets[s] <= offsets[s + 1], op, ": offsets must not decrease, got ", offsets[s], " before ",
        offsets[s + 1], " at sequence ", s);
  }
  TORCH_CHECK(
      offsets[sequences.count] == sequences.rows, op,
      ": offsets must end at the number of events = ", sequences.rows, ", got ", offsets[sequences.count]);
}

// The sequences of `activation`, with the values of offsets checked. `offsets` is contiguous (see
// contiguous_or_undefined) and outlives the result; undefined: padded.
inline Sequences make_sequences(const char* op, const at::Tensor& activation, const at::Tensor& offsets) {
  if (!offsets.defined()) {
    const int64_t count = activation.size(0), length = activation.size(1);
    return {nullptr, count, length, count * length};
  }
  const Sequences sequences{offsets.const_data_ptr<int64_t>(), offsets.size(0) - 1, 0, activation.size(0)};
  check_offsets_values(op, sequences);
  return sequences;
}

// The same for an operator whose packed sequences must not be longer than its horizon. (Padded ones have been
// checked by their shape.)
inline Sequences make_sequences(
    const char* op, const at::Tensor& activation, const at::Tensor& offsets, int64_t horizon) {
  const auto sequences = make_sequences(op, activation, offsets);
  if (sequences.offsets) {
    const int64_t longest = sequences.longest();
    TORCH_CHECK(
        longest <= horizon, op, ": offsets must describe sequences of at most horizon = ", horizon,
        " events, got one of ", longest);
  }
  return sequences;
}

inline at::Tensor contiguous_or_undefined(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->contiguous() : at::Tensor();
}

// One event after another of one sequence, or of its mirror image: row(t) = data + t * stride.
template <typename scalar_t>
struct Events {
  scalar_t* data;
  int64_t stride;

  scalar_t* row(int64_t t) const { return data + t * stride; }
  Events mirrored(int64_t size) const { return {data + (size - 1) * stride, -stride}; }
};

// `data` is that of `tensor`, which has the layout that `sequences` was made of.
template <typename scalar_t>
Events<scalar_t> events_of(
    scalar_t* data, const at::Tensor& tensor, const Sequences& sequences, int64_t sequence) {
  const bool packed = sequences.offsets != nullptr;
  const int64_t stride = tensor.stride(packed ? 0 : 1);
  return {data + (packed ? sequences.start(sequence) * stride : sequence * tensor.stride(0)), stride};
}

// An activation's memory apart from its tensor, for inner loops. Absent tensors have no data.
template <typename scalar_t>
struct Activation {
  scalar_t* data = nullptr;
  int64_t sequence_stride = 0;  // padded only
  int64_t row_stride = 0;

  // The row of event t of a sequence.
  scalar_t* row(const Sequences& sequences, int64_t sequence, int64_t t) const {
    const int64_t first =
        sequences.offsets ? sequences.offsets[sequence] * row_stride : sequence * sequence_stride;
    return data + first + t * row_stride;
  }
};

template <typename scalar_t>
Activation<scalar_t> activation_of(scalar_t* data, const at::Tensor& tensor) {
  return {data, tensor.dim() == 3 ? tensor.stride(0) : 0, tensor.stride(-2)};
}

}  // namespace hyenarec
