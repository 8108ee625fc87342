// What the backward functions of operators with optional arguments share.
#pragma once

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>

namespace hyenarec {

// Saved variables hold an absent optional argument as an undefined tensor.
inline std::optional<at::Tensor> optional(const at::Tensor& saved) {
  return saved.defined() ? std::optional<at::Tensor>(saved) : std::nullopt;
}

// Whether what is computed of these arguments will have a backward pass.
inline bool any_needs_gradient(std::initializer_list<std::optional<at::Tensor>> arguments) {
  return at::GradMode::is_enabled() &&
         std::any_of(arguments.begin(), arguments.end(), [](const std::optional<at::Tensor>& argument) {
           return argument && argument->requires_grad();
         });
}

// Which of the first `count` saved variables, the operator's tensor arguments in its order, need a gradient.
// Absent arguments have no edge in the graph, so edges are counted over those present.
template <size_t count>
std::array<bool, count> needed_gradients(
    const torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& saved) {
  std::array<bool, count> needed{};
  size_t edge = 0;
  for (size_t i = 0; i < count; ++i) needed[i] = saved[i].defined() && ctx->needs_input_grad(edge++);
  return needed;
}

// A *_backward operator returns [0] for what was not asked of it; autograd wants an undefined tensor.
inline at::Tensor if_needed(bool needed, const at::Tensor& gradient) {
  return needed ? gradient : at::Tensor();
}

}  // namespace hyenarec
