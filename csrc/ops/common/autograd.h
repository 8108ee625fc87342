// Gradients of the operators: what torch's autograd does with them, above the kernels of the backends. An
// operator that stands behind another one has no gradient itself; autogradNotImplementedFallback says so, as
// in "derivative for hyenarec::fft_conv_backward is not implemented".
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>

#include <string>

#include "operators.h"

namespace hyenarec {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Saved variables hold an absent optional argument as an undefined tensor.
inline OptionalTensor optional(const at::Tensor& saved) {
  return saved.defined() ? OptionalTensor(saved) : std::nullopt;
}

// Which of the first `count` saved variables, the operator's tensor arguments in its order, need a gradient.
// Absent arguments have no edge in the graph, so edges are counted over those present.
template <size_t count>
std::array<bool, count> needed_gradients(const AutogradContext* ctx, const variable_list& saved) {
  std::array<bool, count> needed{};
  size_t edge = 0;
  for (size_t i = 0; i < count; ++i) needed[i] = saved[i].defined() && ctx->needs_input_grad(edge++);
  return needed;
}

// A *_backward operator returns [0] for what was not asked of it; autograd wants an undefined tensor.
inline at::Tensor if_needed(bool needed, const at::Tensor& gradient) {
  return needed ? gradient : at::Tensor();
}

namespace detail {

// The gradient of an operator `forward` by an operator `backward`. forward(Arguments) returns the result, or
// the result and a tensor to save; backward returns gradients of the first tensors among the arguments from
// {grad, arguments, which of them are needed, the saved tensor if its arguments have a place for it}.
template <auto forward_operator, auto backward_operator>
class Differentiable;
template <
    typename Output, typename Arguments, typename Gradients, typename BackwardArguments,
    Output (*forward_operator)(const Arguments&), Gradients (*backward_operator)(const BackwardArguments&)>
class Differentiable<forward_operator, backward_operator>
    : public torch::autograd::Function<Differentiable<forward_operator, backward_operator>> {
 public:
  static constexpr bool is_traceable = true;

  // Each argument by itself, for autograd to find the tensors among them.
  static at::Tensor forward(AutogradContext* ctx, const auto&... each) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Output output = forward_operator(Arguments{each...});
    variable_list saved;
    (save(ctx, each, saved), ...);
    if constexpr (std::is_same_v<Output, at::Tensor>) {
      ctx->save_for_backward(saved);
      return output;
    } else {
      saved.push_back(std::get<1>(output));
      ctx->save_for_backward(saved);
      return std::get<0>(output);
    }
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    constexpr size_t count = std::tuple_size_v<Gradients>;
    const auto needed = needed_gradients<count>(ctx, saved);
    const auto arguments = restored(ctx, saved, static_cast<EachOf<Arguments>*>(nullptr));
    const auto gradients = std::apply(
        [&](const auto&... each) {
          if constexpr (requires(BackwardArguments all) { all.states; }) {
            constexpr size_t tensors = (is_tensor<decltype(each)> + ...);
            const auto states = saved.size() > tensors ? optional(saved.back()) : std::nullopt;
            return backward_operator({grads[0], {each...}, needed, states});
          } else {
            return backward_operator({grads[0], {each...}, needed});
          }
        },
        arguments);
    return at_their_arguments(needed, gradients, arguments);
  }

 private:
  static void save(AutogradContext* ctx, const auto& argument, variable_list& saved) {
    using T = std::remove_cvref_t<decltype(argument)>;
    if constexpr (std::is_same_v<T, at::Tensor>)
      saved.push_back(argument);
    else if constexpr (std::is_same_v<T, OptionalTensor>)
      saved.push_back(argument.value_or(at::Tensor()));
    else
      ctx->saved_data[std::to_string(ctx->saved_data.size())] = argument;
  }

  // The arguments as `save` saved them, each by value.
  template <typename... Each>
  static auto restored(AutogradContext* ctx, const variable_list& saved, std::tuple<Each...>*) {
    size_t tensor = 0, other = 0;
    const auto next = [&]<typename T>(std::type_identity<T>) -> T {
      if constexpr (std::is_same_v<T, at::Tensor>)
        return saved[tensor++];
      else if constexpr (std::is_same_v<T, OptionalTensor>)
        return optional(saved[tensor++]);
      else
        return ctx->saved_data[std::to_string(other++)].template to<T>();
    };
    return std::tuple<std::remove_cvref_t<Each>...>{next(std::type_identity<std::remove_cvref_t<Each>>())...};
  }

  // As many gradients as arguments: those of the first tensors where they are needed, else undefined.
  template <size_t count, typename Each>
  static variable_list at_their_arguments(
      const std::array<bool, count>& needed, const Tensors<count>& gradients, const Each& arguments) {
    const auto all = std::apply([](const auto&... each) { return std::array{each...}; }, gradients);
    variable_list result;
    size_t i = 0;
    const auto put = [&](const auto& argument) {
      const bool is_next = is_tensor<decltype(argument)> && i < count;
      result.push_back(is_next ? if_needed(needed[i], all[i]) : at::Tensor());
      i += is_next;
    };
    std::apply([&](const auto&... each) { (put(each), ...); }, arguments);
    return result;
  }
};

// The kernel of such an operator for Autograd.
template <
    auto forward, auto backward, typename Arguments = typename decltype(single_of(forward))::OfArguments>
at::Tensor gradient(const Arguments& arguments) {
  return std::apply(
      [](const auto&... each) { return Differentiable<forward, backward>::apply(each...); },
      arguments.each());
}

// The same where `saving` has something to save, if there will be a backward pass; else `forward` does.
template <
    auto forward, auto saving, auto backward,
    typename Arguments = typename decltype(single_of(forward))::OfArguments>
at::Tensor gradient_saving(const Arguments& arguments) {
  bool any = false;
  for_each_tensor<std::tuple_size_v<EachOf<Arguments>>>(
      arguments, [&](size_t, const at::Tensor* tensor) { any = any || (tensor && tensor->requires_grad()); });
  return any && at::GradMode::is_enabled() ? gradient<saving, backward>(arguments)
                                           : gradient<forward, backward>(arguments);
}

}  // namespace detail
}  // namespace hyenarec
