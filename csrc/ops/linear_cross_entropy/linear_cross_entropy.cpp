#include "linear_cross_entropy.h"

#include <ATen/ops/clamp_min.h>
#include <ATen/ops/ge.h>
#include <ATen/ops/sum.h>

#include "arguments.h"

namespace hyenarec {

at::Tensor linear_cross_entropy(
    const at::Tensor& hidden, const at::Tensor& weight, const OptionalTensor& bias, const at::Tensor& target,
    const OptionalTensor& candidates, const OptionalTensor& log_q, double label_smoothing,
    c10::string_view reduction, const OptionalTensor& adjusted, const OptionalTensor& adjustment) {
  return detail::dispatch<"linear_cross_entropy", at::Tensor, LinearCrossEntropyArguments>(
      {hidden, weight, bias, target, candidates, log_q, label_smoothing, reduction, adjusted, adjustment});
}

namespace {

using detail::Argument;

// A vector of V numbers, or of M or K indices.
void check_vector(
    const Argument& vector, const c10::SymInt& size, const char* layout, const char* symbol,
    const Argument& hidden) {
  detail::check_rank(vector, 1, layout);
  detail::check_size(vector, 0, size, layout, symbol);
  detail::check_device(vector, hidden);
}

// In 16 bits like hidden, or in the type that is right beside any hidden.
void check_bias_type(const Argument& bias, c10::ScalarType hidden) {
  if (bias.tensor.scalar_type() == hidden) return;
  const auto type = detail::parameter_type(hidden);
  detail::check_type(bias, type, hidden == type ? "like hidden" : "or like hidden");
}

}  // namespace

void CrossEntropyArguments::check() const {
  using namespace detail;
  const char* op = "linear_cross_entropy";
  const Argument hidden_argument{op, "hidden", hidden}, weight_argument{op, "weight", weight};
  const auto type = hidden.scalar_type();
  check_activation_type(hidden_argument);
  check_rank(hidden_argument, 2, "[M, D]");
  check_rank(weight_argument, 2, "[V, D]");
  check_size(weight_argument, 1, hidden.sym_size(1), "[V, D]", "D");
  check_type(weight_argument, type, "like hidden");
  check_device(weight_argument, hidden_argument);
  const auto items = weight.sym_size(0);
  TORCH_SYM_CHECK(items.sym_ge(1), op, ": weight must be [V, D] with V >= 1, got ", weight.sym_sizes());
  if (bias) {
    check_vector({op, "bias", *bias}, items, "[V]", "V", hidden_argument);
    check_bias_type({op, "bias", *bias}, type);
  }
  check_vector({op, "target", target}, hidden.sym_size(0), "[M]", "M", hidden_argument);
  check_type({op, "target", target}, c10::kLong, "");
  if (candidates) {
    const Argument candidates_argument{op, "candidates", *candidates};
    check_rank(candidates_argument, 1, "[K]");
    check_type(candidates_argument, c10::kLong, "");
    check_device(candidates_argument, hidden_argument);
  }
  if (log_q) {
    TORCH_CHECK(candidates, op, ": log_q must be absent without candidates, got ", log_q->sym_sizes());
    check_vector({op, "log_q", *log_q}, items, "[V]", "V", hidden_argument);
    check_type({op, "log_q", *log_q}, parameter_type(type), "beside this hidden");
  }
  check_adjustment();
  TORCH_CHECK(
      label_smoothing >= 0 && label_smoothing <= 1, op, ": label_smoothing must be in [0, 1], got ",
      label_smoothing);
}

void CrossEntropyArguments::check_adjustment() const {
  using namespace detail;
  const char* op = "linear_cross_entropy";
  TORCH_CHECK(
      adjusted.has_value() == adjustment.has_value(), op,
      ": adjusted and adjustment must be given together, got ", adjusted ? "adjusted" : "adjustment",
      " alone");
  if (!adjusted) return;
  TORCH_CHECK(!candidates, op, ": adjusted must be absent beside candidates, got ", adjusted->sym_sizes());
  const Argument adjusted_argument{op, "adjusted", *adjusted},
      adjustment_argument{op, "adjustment", *adjustment};
  const Argument hidden_argument{op, "hidden", hidden};
  check_rank(adjusted_argument, 2, "[M, K]");
  check_size(adjusted_argument, 0, hidden.sym_size(0), "[M, K]", "M");
  check_type(adjusted_argument, c10::kLong, "");
  check_device(adjusted_argument, hidden_argument);
  check_rank(adjustment_argument, 2, "[M, K]");
  check_size(adjustment_argument, 0, hidden.sym_size(0), "[M, K]", "M");
  check_size(adjustment_argument, 1, adjusted->sym_size(1), "[M, K]", "K");
  check_type(adjustment_argument, parameter_type(hidden.scalar_type()), "beside this hidden");
  check_device(adjustment_argument, hidden_argument);
}

void CrossEntropyArguments::check_backward(const at::Tensor& grad) const {
  check();
  const Argument argument{"linear_cross_entropy_backward", "grad", grad};
  check_vector(argument, hidden.sym_size(0), "[M]", "M", {argument.op, "hidden", hidden});
  detail::check_type(argument, detail::parameter_type(hidden.scalar_type()), "beside this hidden");
}

void LinearCrossEntropyArguments::check() const {
  TORCH_CHECK(
      reduction == "none" || reduction == "sum" || reduction == "mean",
      "linear_cross_entropy: reduction must be 'none', 'sum' or 'mean', got '", reduction, "'");
}

at::Tensor detail::number_of_targets(const at::Tensor& target) { return target.ge(0).sum().clamp_min(1); }

at::Tensor detail::reduce_losses(
    const at::Tensor& losses, const at::Tensor& target, c10::string_view reduction) {
  if (reduction == "none") return losses;
  const auto sum = losses.sum(at::kDouble);
  return (reduction == "sum" ? sum : sum.div(number_of_targets(target))).to(losses.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(hyenarec, m) {
  m.def(
      "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? "
      "candidates=None, Tensor? log_q=None, float label_smoothing=0., str reduction=\"mean\", Tensor? "
      "adjusted=None, Tensor? adjustment=None) -> Tensor");
  m.def(
      "linear_cross_entropy_with_gradients(Tensor hidden, Tensor weight, Tensor? bias, Tensor? adjustment, "
      "Tensor target, Tensor? adjusted, Tensor? candidates, Tensor? log_q, float label_smoothing, bool[4] "
      "needs_grad) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "linear_cross_entropy_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor? bias, Tensor? "
      "adjustment, Tensor target, Tensor? adjusted, Tensor? candidates, Tensor? log_q, float "
      "label_smoothing, "
      "bool[4] needs_grad) -> (Tensor, Tensor, Tensor, Tensor)");
}

// For every backend: the reduction of what the backend's kernel computes.
static at::Tensor reduced_losses(const LinearCrossEntropyArguments& arguments) {
  const auto losses =
      std::get<0>(linear_cross_entropy_with_gradients({arguments.losses(), {false, false, false, false}}));
  return detail::reduce_losses(losses, arguments.target, arguments.reduction);
}

static Tensors<5> with_gradients_meta(const CrossEntropyGradientArguments& arguments) {
  const auto& losses = arguments.losses;
  const auto &hidden = losses.hidden, &weight = losses.weight;
  const auto &bias = losses.bias, &adjustment = losses.adjustment;
  const auto& needs_grad = arguments.needs_grad;
  const auto type = detail::parameter_type(hidden.scalar_type());
  using detail::empty_gradient;
  return {
      at::empty_symint(losses.target.sym_sizes(), hidden.options().dtype(type)),
      empty_gradient(needs_grad[0], hidden), empty_gradient(needs_grad[1], weight, type),
      empty_gradient(needs_grad[2] && bias, bias.value_or(weight), type),
      empty_gradient(needs_grad[3] && adjustment, adjustment.value_or(weight), type)};
}

TORCH_LIBRARY_IMPL(hyenarec, CompositeExplicitAutograd, m) {
  m.impl("linear_cross_entropy", detail::checked<reduced_losses>);
}
TORCH_LIBRARY_IMPL(hyenarec, Meta, m) {
  m.impl("linear_cross_entropy_with_gradients", detail::checked<with_gradients_meta>);
  m.impl(
      "linear_cross_entropy_backward",
      detail::checked<detail::meta_gradients<CrossEntropyBackwardArguments>>);
}

}  // namespace hyenarec
