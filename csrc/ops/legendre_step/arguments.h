// Checks and conversions that the kernels of legendre_step share.
#pragma once

#include "../common/operators.h"
#include "legendre_step.h"
#include "sizes.h"

namespace hyenarec {
namespace detail {

// Every kernel (CPU, CUDA, Meta) calls these first, so that checks also run under inference_mode.
void check_legendre_step_weights_arguments(
    const at::Tensor& coeffs, const at::Tensor& decay, const c10::SymInt& horizon,
    const std::optional<at::Tensor>& skip);
LegendreStepSizes check_legendre_step_arguments(
    const at::Tensor& state, const at::Tensor& u, const at::Tensor& position, const at::Tensor& weights,
    const c10::SymInt& horizon, const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate);

// An activation or gate as [B, L, D] with channels side by side; undefined if absent.
at::Tensor legendre_step_events(const std::optional<at::Tensor>& tensor);

// The numbers of legendre_step_weights, on any device.
at::Tensor make_legendre_step_weights(
    const at::Tensor& coeffs, const at::Tensor& decay, int64_t horizon,
    const std::optional<at::Tensor>& skip);

}  // namespace detail
}  // namespace hyenarec
