// The arguments of linear_cross_entropy, the operators behind it, and the checks of both.
#pragma once

#include <array>
#include <tuple>

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

  template <typename Call>
  decltype(auto) apply(const Call& call) const {
    return call(hidden, weight, bias, target, candidates, log_q, label_smoothing);
  }
};

struct LinearCrossEntropyArguments {
  CrossEntropyArguments losses;
  c10::string_view reduction;
};

struct CrossEntropyGradientArguments {
  CrossEntropyArguments losses;
  std::array<bool, 3> needs_grad;
};

struct CrossEntropyBackwardArguments {
  const at::Tensor& grad;
  CrossEntropyArguments losses;
  std::array<bool, 3> needs_grad;
};

// The losses [M] and the gradients of their sum: {losses, hidden, weight, bias}. Those of weight and bias
// have the dtype of the losses, for they are sums over many rows. needs_grad selects gradients in that order;
// one that is not selected comes back as an empty tensor of shape [0]. Not differentiable.
using LossesAndGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
LossesAndGradients linear_cross_entropy_with_gradients(const CrossEntropyGradientArguments& arguments);
using LinearCrossEntropyWithGradients = LossesAndGradients(
    const at::Tensor& hidden, const at::Tensor& weight, const OptionalTensor& bias, const at::Tensor& target,
    const OptionalTensor& candidates, const OptionalTensor& log_q, double label_smoothing,
    std::array<bool, 3> needs_grad);

// Gradients of the losses of reduction "none" from grad [M] (dtype of the losses, any strides): {hidden,
// weight, bias} like the arguments, selected by needs_grad as above. Computes the scores again.
// Not differentiable: a second derivative raises.
using LinearCrossEntropyGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
LinearCrossEntropyGradients linear_cross_entropy_backward(const CrossEntropyBackwardArguments& arguments);
using LinearCrossEntropyBackward =
    detail::Backward<LinearCrossEntropyGradients, LinearCrossEntropyWithGradients>::type;

namespace detail {

// Every kernel (CPU, CUDA, Meta) calls these first, so that checks also run under inference_mode.
void check_cross_entropy_arguments(const CrossEntropyArguments& arguments);
void check_cross_entropy_backward_arguments(const CrossEntropyBackwardArguments& arguments);
void check_reduction(c10::string_view reduction);

// How many rows a mean is over, at least 1: an int64 scalar on target's device.
at::Tensor number_of_targets(const at::Tensor& target);
at::Tensor reduce_losses(const at::Tensor& losses, const at::Tensor& target, c10::string_view reduction);

}  // namespace detail
}  // namespace hyenarec
