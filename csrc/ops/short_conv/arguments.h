// The operator behind short_conv, and the checks of their arguments.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "../common/argument_checks.h"
#include "max_width.h"

namespace hyenarec {

// Gradients of short_conv from grad (like u in shape and dtype, any strides): {u, weight [D, W], bias [D]},
// contiguous. needs_grad selects them in that order; one that is not selected comes back as an empty tensor
// of shape [0] in its would-be dtype (u's for u, weight's for weight and bias).
// Not differentiable: a second derivative raises.
std::tuple<at::Tensor, at::Tensor, at::Tensor> short_conv_backward(
    const at::Tensor& grad, const at::Tensor& u, const at::Tensor& weight,
    const std::optional<at::Tensor>& offsets, std::array<bool, 3> needs_grad);

namespace detail {

// Every kernel (CPU, CUDA, Meta) calls these first, so that checks also run under inference_mode.
void check_short_conv_arguments(
    const at::Tensor& u, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& offsets);
void check_short_conv_backward_arguments(
    const at::Tensor& grad, const at::Tensor& u, const at::Tensor& weight,
    const std::optional<at::Tensor>& offsets);

// A short filter, [channels, W] with 1 <= W <= kShortConvMaxWidth, beside an activation. `layout` names the
// dimensions, `symbol` the channels.
void check_short_filter(
    const Argument& weight, const c10::SymInt& channels, const char* layout, const char* symbol,
    const Argument& activation);

}  // namespace detail
}  // namespace hyenarec
