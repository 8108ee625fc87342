// legendre_conv one event at a time: constant time and memory an event, for serving.
//
//   const auto weights = legendre_step_weights(coeffs, decay, horizon, skip);  // once a model
//   auto state = legendre_step_state(coeffs, batch);                           // once a stream
//   out = legendre_step(state, u, position, weights, horizon);                 // for position = 0, 1, 2, ...
//
// A stream's state is what the scan (docs/scan.md) carries: N Legendre coefficients a channel for all
// finished chunks, and the up to C events of the current chunk, C = legendre_chunk_length(N). An event costs
// N + C / 2 multiply-adds a channel on average; each C-th event finishes a chunk, which takes about N^3 / 6 +
// N^2 / 2 + N C more.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>

#include "../common/macros.h"

namespace hyenarec {

// What legendre_step needs of the parameters, [N + 2 C + 2, D], dtype and device of coeffs. Its rows are
// coeffs transposed [N], the kernel's first C lags with skip on the first [C], exp(-decay j) for 0 <= j <= C
// [C + 1], exp(-decay C) - 1 [1].
//
// coeffs   [D, N], float32 or float64; N >= 0
// decay    [D], like coeffs, per lag; finite and >= 0 (values are checked on the CPU only)
// horizon  number of lags that [-1, 1] spans, >= 1
// skip     [D], like coeffs; nullopt: no skip term
// It also builds the scan's constants for the whole horizon, so that no step waits for them.
// Not differentiable. Throws c10::Error naming the argument that is wrong.
HYENAREC_API at::Tensor legendre_step_weights(
    const at::Tensor& coeffs, const at::Tensor& decay, c10::SymInt horizon,
    const std::optional<at::Tensor>& skip = std::nullopt);

// The state of `batch` streams before their first event: zeros [batch, N + C, D] like coeffs [D, N].
HYENAREC_API at::Tensor legendre_step_state(const at::Tensor& coeffs, c10::SymInt batch);

// The next event, or the next L events, of each stream: row b of the result holds rows position[b] ..
// position[b] + L - 1 of legendre_conv over all that stream b has been given. The streams of a batch may
// stand at different positions.
//
// state      [B, N + C, D], contiguous, dtype of weights; updated in place. At position 0 it is not read, so
//            a used state starts a new stream without being cleared
// u          [B, D]; or [B, L, D], L events in turn. float32, float64, bfloat16, or (CUDA) float16; any
//            strides
// position   [B], int64: how many events stream b has been given before. Go on from where the last call
//            ended: what follows a skipped or repeated position has no meaning. 0 <= position <= horizon - L
//            is checked on the CPU; on CUDA events beyond the horizon give NaN and leave the state alone
// weights    [N + 2 C + 2, D] from legendre_step_weights; float64 if u is float64, else float32
// horizon    as given to legendre_step_weights
// pre_gate   like u in shape and dtype; nullopt: ones
// post_gate  like u in shape and dtype; nullopt: ones
// All on one device. Returns a contiguous tensor like u.
// Not differentiable: throws if a gradient is asked for. Throws c10::Error naming the argument that is wrong,
// before any state is changed.
HYENAREC_API at::Tensor legendre_step(
    at::Tensor& state, const at::Tensor& u, const at::Tensor& position, const at::Tensor& weights,
    c10::SymInt horizon, const std::optional<at::Tensor>& pre_gate = std::nullopt,
    const std::optional<at::Tensor>& post_gate = std::nullopt);

}  // namespace hyenarec
