// What the CPU kernels make of tensors: raw rows, sequences, threads. The kernels themselves need no torch.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>

#include <optional>

#include "../channels_last.h"
#include "../raw_data.h"
#include "rows.h"
#include "simd.h"
#include "threads.h"

namespace hyenarec {

// A tensor's numbers as the kernels see them: simd::BFloat16 for torch's.
template <typename scalar_t>
struct MemoryType {
  using type = scalar_t;
};
template <>
struct MemoryType<c10::BFloat16> {
  using type = simd::BFloat16;
};
template <typename scalar_t>
using memory_t = typename MemoryType<scalar_t>::type;

// The tensor as kernels can read it: channels side by side. Undefined: absent.
inline at::Tensor readable(const std::optional<at::Tensor>& tensor) {
  return tensor ? with_unit_channel_stride(*tensor) : at::Tensor();
}
inline at::Tensor contiguous_or_undefined(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->contiguous() : at::Tensor();
}

// The rows of a tensor [B, L, D] or [rows, D] with its channels side by side; absent if it is undefined.
template <typename scalar_t>
Rows<const memory_t<scalar_t>> rows_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  const int64_t sequence_stride = tensor.dim() == 3 ? tensor.stride(0) : 0;
  return {data_or_null<const memory_t<scalar_t>>(tensor), sequence_stride, tensor.stride(-2)};
}
// Of a result; absent if it is [0]: a gradient that isn't wanted.
template <typename scalar_t>
Rows<memory_t<scalar_t>> rows_of_result(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.dim() < 2) return {};
  const int64_t sequence_stride = tensor.dim() == 3 ? tensor.stride(0) : 0;
  return {data_or_null<memory_t<scalar_t>>(tensor), sequence_stride, tensor.stride(-2)};
}

// torch's threads.
inline Threads all_threads() {
  return {at::get_num_threads(), [](int64_t count, const std::function<void()>& body) {
            at::parallel_for(0, count, 1, [&](int64_t, int64_t) { body(); });
          }};
}

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

}  // namespace hyenarec
