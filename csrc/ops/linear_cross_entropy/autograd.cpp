#include "../common/autograd.h"

#include "arguments.h"

namespace hyenarec {
namespace {

// What is saved: the arguments, then the gradients of the losses' sum where the forward pass computed them.
enum Saved { kHidden, kWeight, kBias, kAdjustment, kTarget, kAdjusted, kCandidates, kLogQ, kGradients };

// needs_grad: of hidden, weight, bias and adjustment. (The context knows that in backward only.)
struct ForwardArguments {
  CrossEntropyArguments losses;
  c10::string_view reduction;
  std::array<bool, 4> needs_grad;
};

class LinearCrossEntropy : public torch::autograd::Function<LinearCrossEntropy> {
 public:
  static constexpr bool is_traceable = true;

  // Each of ForwardArguments by itself, for autograd to find the tensors among them.
  static at::Tensor forward(AutogradContext* ctx, const auto&... each) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const ForwardArguments arguments{each...};
    const auto& [losses, reduction, needs_grad] = arguments;
    ctx->saved_data["label_smoothing"] = losses.label_smoothing;
    ctx->saved_data["reduction"] = std::string(reduction);
    variable_list saved;
    detail::for_each_tensor<kGradients>(
        losses, [&](size_t, const at::Tensor* tensor) { saved.push_back(tensor ? *tensor : at::Tensor()); });
    if (reduction == "none") {
      ctx->save_for_backward(saved);
      return linear_cross_entropy(
          losses.hidden, losses.weight, losses.bias, losses.target, losses.candidates, losses.log_q,
          losses.label_smoothing, reduction, losses.adjusted, losses.adjustment);
    }
    const auto [values, of_hidden, of_weight, of_bias, of_adjustment] =
        linear_cross_entropy_with_gradients({losses, needs_grad});
    saved.insert(saved.end(), {of_hidden, of_weight, of_bias, of_adjustment});
    ctx->save_for_backward(saved);
    return detail::reduce_losses(values, losses.target, reduction);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto needed = needed_gradients<4>(ctx, saved);
    const bool has_gradients = saved.size() > kGradients;
    auto grad = grads[0];
    if (ctx->saved_data["reduction"].toStringRef() == "mean")
      grad = grad.div(detail::number_of_targets(saved[kTarget]));
    variable_list gradients(11);
    // To be differentiated again, the gradients must depend on grad through the operator, which refuses that.
    if (has_gradients && !(at::GradMode::is_enabled() && grad.requires_grad())) {
      for (size_t i = 0; i < needed.size(); ++i) {
        if (needed[i]) gradients[i] = saved[kGradients + i].mul(grad).to(saved[i].scalar_type());
      }
      return gradients;
    }
    const auto [hidden, weight, bias, adjustment] = linear_cross_entropy_backward(
        {grad.expand_symint(saved[kTarget].sym_sizes()),
         {saved[kHidden], saved[kWeight], optional(saved[kBias]), optional(saved[kAdjustment]),
          saved[kTarget], optional(saved[kAdjusted]), optional(saved[kCandidates]), optional(saved[kLogQ]),
          ctx->saved_data["label_smoothing"].toDouble()},
         needed});
    gradients[kHidden] = if_needed(needed[0], hidden);
    gradients[kWeight] = if_needed(needed[1], weight);
    gradients[kBias] = if_needed(needed[2], bias);
    gradients[kAdjustment] = if_needed(needed[3], adjustment);
    return gradients;
  }
};

at::Tensor linear_cross_entropy_autograd(const LinearCrossEntropyArguments& arguments) {
  arguments.check();
  const auto losses = arguments.losses();
  const bool enabled = at::GradMode::is_enabled();
  TORCH_CHECK(
      !enabled || !losses.log_q || !losses.log_q->requires_grad(),
      "linear_cross_entropy: log_q must not require a gradient, since it has none");
  std::array<bool, 4> needs_grad;
  detail::for_each_tensor<4>(losses, [&](size_t i, const at::Tensor* tensor) {
    needs_grad[i] = enabled && tensor && tensor->requires_grad();
  });
  return std::apply(
      [&](const auto&... each) {
        return LinearCrossEntropy::apply(each..., arguments.reduction, needs_grad);
      },
      losses.each());
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("linear_cross_entropy", detail::unchecked<linear_cross_entropy_autograd>);
  m.impl("linear_cross_entropy_with_gradients", torch::autograd::autogradNotImplementedFallback());
  m.impl("linear_cross_entropy_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
