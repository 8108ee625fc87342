// What the backward functions of operators with optional arguments share.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <optional>

namespace hyenarec {

// Saved variables hold an absent optional argument as an undefined tensor.
inline std::optional<at::Tensor> optional(const at::Tensor& saved) {
  return saved.defined() ? std::optional<at::Tensor>(saved) : std::nullopt;
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
