// The arguments of linear_cross_entropy, the operators behind it, and the checks of both.
#pragma once

#include "../common/operators.h"
#include "linear_cross_entropy.h"

namespace hyenarec {

// What all of the operators share.
struct CrossEntropyArguments {
  const at::Tensor &hidden, &weight;
  const OptionalTensor& bias;
  const at::Tensor& target;
  const OptionalTensor &candidates, &log_q;
  double label_smoothing;

  auto each() const { return std::tie(hidden, weight, bias, target, candidates, log_q, label_smoothing); }
  void check() const;
  void check_backward(const at::Tensor& grad) const;
};

struct LinearCrossEntropyArguments {
  CrossEntropyArguments losses;
  c10::string_view reduction;

  auto each() const { return std::tuple_cat(losses.each(), std::tie(reduction)); }
  void check() const;
};

struct CrossEntropyGradientArguments {
  CrossEntropyArguments losses;
  std::array<bool, 3> needs_grad;

  auto each() const { return std::tuple_cat(losses.each(), std::tie(needs_grad)); }
  void check() const { losses.check(); }
};

// The losses [M] and the gradients of their sum: {losses, hidden, weight, bias}. Those of weight and bias
// have the dtype of the losses, for they are sums over many rows. needs_grad selects gradients in that order;
// one that is not selected comes back as an empty tensor of shape [0]. Not differentiable.
constexpr auto linear_cross_entropy_with_gradients =
    detail::dispatch<"linear_cross_entropy_with_gradients", Tensors<4>, CrossEntropyGradientArguments>;

// Gradients of the losses of reduction "none" from grad [M] (dtype of the losses, any strides): {hidden,
// weight, bias} like the arguments, selected by needs_grad as above. Computes the scores again.
// Not differentiable: a second derivative raises.
using CrossEntropyBackwardArguments = detail::BackwardArguments<CrossEntropyArguments, 3>;
constexpr auto linear_cross_entropy_backward =
    detail::dispatch<"linear_cross_entropy_backward", Tensors<3>, CrossEntropyBackwardArguments>;

namespace detail {

// How many rows a mean is over, at least 1: an int64 scalar on target's device.
at::Tensor number_of_targets(const at::Tensor& target);
at::Tensor reduce_losses(const at::Tensor& losses, const at::Tensor& target, c10::string_view reduction);

}  // namespace detail
}  // namespace hyenarec
