// The arguments of linear_cross_entropy, the operators behind it, and the checks of both.
#pragma once

#include "../common/operators.h"
#include "linear_cross_entropy.h"

namespace hyenarec {

// What the operators behind linear_cross_entropy share; what has a gradient comes first.
struct CrossEntropyArguments {
  const at::Tensor &hidden, &weight;
  const OptionalTensor &bias, &adjustment;
  const at::Tensor& target;
  const OptionalTensor &adjusted, &candidates, &log_q;
  double label_smoothing;

  auto each() const {
    return std::tie(hidden, weight, bias, adjustment, target, adjusted, candidates, log_q, label_smoothing);
  }
  void check() const;
  void check_backward(const at::Tensor& grad) const;

 private:
  void check_adjustment() const;
};

// In the order of the public schema.
struct LinearCrossEntropyArguments {
  const at::Tensor &hidden, &weight;
  const OptionalTensor& bias;
  const at::Tensor& target;
  const OptionalTensor &candidates, &log_q;
  double label_smoothing;
  c10::string_view reduction;
  const OptionalTensor &adjusted, &adjustment;

  auto each() const {
    return std::tie(
        hidden, weight, bias, target, candidates, log_q, label_smoothing, reduction, adjusted, adjustment);
  }
  CrossEntropyArguments losses() const {
    return {hidden, weight, bias, adjustment, target, adjusted, candidates, log_q, label_smoothing};
  }
  void check() const;
};

struct CrossEntropyGradientArguments {
  CrossEntropyArguments losses;
  std::array<bool, 4> needs_grad;

  auto each() const { return std::tuple_cat(losses.each(), std::tie(needs_grad)); }
  void check() const { losses.check(); }
};

// The losses [M] and the gradients of their sum: {losses, hidden, weight, bias, adjustment}. Those of weight
// and bias have the dtype of the losses, for they are sums over many rows. needs_grad selects gradients in
// that order; one that is not selected comes back as an empty tensor of shape [0]. Not differentiable.
constexpr auto linear_cross_entropy_with_gradients =
    detail::dispatch<"linear_cross_entropy_with_gradients", Tensors<5>, CrossEntropyGradientArguments>;

// Gradients of the losses of reduction "none" from grad [M] (dtype of the losses, any strides): {hidden,
// weight, bias, adjustment} like the arguments, selected by needs_grad as above. Computes the scores again.
// Not differentiable: a second derivative raises.
using CrossEntropyBackwardArguments = detail::BackwardArguments<CrossEntropyArguments, 4>;
constexpr auto linear_cross_entropy_backward =
    detail::dispatch<"linear_cross_entropy_backward", Tensors<4>, CrossEntropyBackwardArguments>;

namespace detail {

// How many rows a mean is over, at least 1: an int64 scalar on target's device.
at::Tensor number_of_targets(const at::Tensor& target);
at::Tensor reduce_losses(const at::Tensor& losses, const at::Tensor& target, c10::string_view reduction);

}  // namespace detail
}  // namespace hyenarec
