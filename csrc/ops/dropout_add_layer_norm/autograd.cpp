#include "../common/autograd.h"

#include "arguments.h"

namespace hyenarec {
namespace {

class DropoutAddLayerNorm : public torch::autograd::Function<DropoutAddLayerNorm> {
 public:
  static constexpr bool is_traceable = true;

  // Of DropoutAddLayerNormArguments.
  static variable_list forward(AutogradContext* ctx, const auto&... each) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const DropoutAddLayerNormArguments arguments{each...};
    const auto [normed, sum, mean, rstd] = dropout_add_layer_norm_with_statistics(arguments);
    ctx->save_for_backward({sum, mean, rstd, arguments.weight, arguments.seed.value_or(at::Tensor())});
    ctx->saved_data["p"] = arguments.p;
    ctx->saved_data["branch_dtype"] = arguments.branch.scalar_type();
    ctx->saved_data["has_residual"] = arguments.residual.has_value();
    ctx->set_materialize_grads(false);  // of an output that nobody used, zeros need not be read
    return {normed, sum};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto& sum = saved[0];
    const double p = ctx->saved_data["p"].toDouble();
    const auto branch_dtype = ctx->saved_data["branch_dtype"].toScalarType();
    const bool has_residual = ctx->saved_data["has_residual"].toBool();
    // An absent residual has no edge in the graph.
    std::array<bool, 4> needed{
        ctx->needs_input_grad(0), has_residual && ctx->needs_input_grad(1),
        ctx->needs_input_grad(has_residual ? 2 : 1), ctx->needs_input_grad(has_residual ? 3 : 2)};
    // Without dropout a sum has one gradient for both of its terms.
    const bool shared = needed[0] && needed[1] && p == 0 && branch_dtype == sum.scalar_type();
    const std::array<bool, 4> computed{needed[0], needed[1] && !shared, needed[2], needed[3]};
    const auto grad_normed = optional(grads[0]), grad_sum = optional(grads[1]), seed = optional(saved[4]);
    const auto [of_branch, of_residual, of_weight, of_bias] = detail::dropout_add_layer_norm_backward(
        {grad_normed, grad_sum, sum, saved[1], saved[2], saved[3], p, seed, branch_dtype, computed});
    variable_list gradients(7);
    gradients[0] = if_needed(needed[0], of_branch);
    gradients[1] = if_needed(needed[1], shared ? of_branch : of_residual);
    gradients[2] = if_needed(needed[2], of_weight);
    gradients[3] = if_needed(needed[3], of_bias);
    return gradients;
  }
};

Tensors<2> dropout_add_layer_norm_autograd(const DropoutAddLayerNormArguments& arguments) {
  const auto outputs =
      std::apply([](const auto&... each) { return DropoutAddLayerNorm::apply(each...); }, arguments.each());
  return {outputs[0], outputs[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, Autograd, m) {
  m.impl("dropout_add_layer_norm", detail::unchecked<dropout_add_layer_norm_autograd>);
  m.impl("dropout_add_layer_norm_with_statistics", torch::autograd::autogradNotImplementedFallback());
  m.impl("dropout_add_layer_norm_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hyenarec
