// Activations as the CUDA kernels read them: rows of channels at even distances.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

#include "../channels_last.h"
#include "../raw_data.h"

namespace hyenarec {

// An activation's tensor and the distance of its rows. [B, L, D] and [total, D] alike; a copy is made unless
// channels are contiguous and all rows evenly spaced.
struct Rows {
  at::Tensor tensor;
  int64_t stride;

  explicit Rows(const at::Tensor& source) : tensor(with_unit_channel_stride(source)) {
    const int64_t dims = tensor.dim();
    const bool even = dims == 2 || tensor.size(0) == 1 || tensor.size(1) == 1 ||
                      tensor.stride(0) == tensor.size(1) * tensor.stride(1);
    if (!even) tensor = tensor.contiguous();
    // The stride of a dimension of size 1 is arbitrary, also in a contiguous tensor: with one event a
    // sequence, the sequences' distance counts.
    stride = tensor.stride(dims == 3 && tensor.size(1) == 1 ? 0 : dims - 2);
  }
};

// How rows are cut into sequences: each of `length`, or at offsets if they are defined (contiguous then).
struct RowSequences {
  int64_t rows, length, count;
  at::Tensor offsets;

  RowSequences(const char* op, const at::Tensor& activation, const std::optional<at::Tensor>& bounds) {
    if (bounds) {
      TORCH_CHECK(bounds->size(0) > 1, op, ": offsets must hold a sequence for the rows, got none");
      offsets = bounds->contiguous();
      rows = activation.size(0);
      length = 0;
      count = offsets.size(0) - 1;
    } else {
      length = activation.size(1);
      count = activation.size(0);
      rows = count * length;
    }
  }
  const int64_t* offsets_data() const { return data_or_null<const int64_t>(offsets); }
};

}  // namespace hyenarec
