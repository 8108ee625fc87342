// The sizes of a call, and where a stream's numbers lie, for CPU and CUDA. No torch here.
#pragma once

#include <cstdint>

#include "../common/macros.h"

namespace hyenarec {

struct LegendreStepWork {
  int64_t streams, length, channels, horizon;
  int64_t num_coeffs, chunk;  // N and C, from the shapes of state and weights

  // Numbers of a stream's state.
  HYENAREC_HOST_DEVICE int64_t state_size() const { return (num_coeffs + chunk) * channels; }
};

// One stream's state and the weights, from a channel on; rows are `pitch` = all channels apart. The layouts
// are those of legendre_step.h.
template <typename scalar_t>
struct LegendreStepRows {
  int64_t pitch;
  scalar_t* coefficients;            // [N], of what all finished chunks contribute; unset in the first chunk
  scalar_t* events;                  // [C], of the current chunk, gated
  const scalar_t* coeffs;            // [N]
  const scalar_t* near;              // [C]
  const scalar_t* decay_from_start;  // [C + 1]: exp(-decay j)
  const scalar_t* chunk_decay_change;  // [1]: exp(-decay C) - 1

  HYENAREC_HOST_DEVICE LegendreStepRows(
      const LegendreStepWork& work, scalar_t* states, const scalar_t* weights, int64_t stream,
      int64_t channel = 0)
      : pitch(work.channels),
        coefficients(states + stream * work.state_size() + channel),
        events(coefficients + work.num_coeffs * pitch),
        coeffs(weights + channel),
        near(coeffs + work.num_coeffs * pitch),
        decay_from_start(near + work.chunk * pitch),
        chunk_decay_change(decay_from_start + (work.chunk + 1) * pitch) {}
};

}  // namespace hyenarec
