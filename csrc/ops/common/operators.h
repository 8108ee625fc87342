// Where an operator's schema, its C++ function and its kernels meet: torch's dispatcher.
//
// An operator's arguments are a struct of references and values in the order of its schema, with
//   each()   a tuple of references to them
//   check()  throws c10::Error, naming an argument that is wrong
// Its kernels are functions of that struct.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "argument_checks.h"

namespace hyenarec {

using OptionalTensor = std::optional<at::Tensor>;

// std::tuple<at::Tensor, ...>, what an operator with `count` results returns. std::tuple_cat makes one of an
// array.
template <size_t count>
using Tensors = decltype(std::tuple_cat(std::array<at::Tensor, count>()));

namespace detail {

template <typename T>
constexpr bool is_tensor = std::is_same_v<std::remove_cvref_t<T>, at::Tensor> ||
                           std::is_same_v<std::remove_cvref_t<T>, OptionalTensor>;

template <typename Arguments>
using EachOf = decltype(std::declval<const Arguments&>().each());

// How torch passes what each() refers to: tensors by reference, all else by value.
template <typename Reference>
using Parameter = std::conditional_t<is_tensor<Reference>, Reference, std::remove_cvref_t<Reference>>;

// The function of single arguments that torch knows, which calls the kernel.
template <typename Result, typename Arguments, typename Each = EachOf<Arguments>>
struct Single;
template <typename Result, typename Arguments, typename... Each>
struct Single<Result, Arguments, std::tuple<Each...>> {
  using OfArguments = Arguments;
  using Signature = Result(Parameter<Each>...);

  template <Result (*kernel)(const Arguments&), bool checks>
  static Result call(Parameter<Each>... each) {
    const Arguments arguments{std::forward<Parameter<Each>>(each)...};
    if constexpr (checks) arguments.check();
    return kernel(arguments);
  }
};
template <typename Result, typename Arguments>
Single<Result, Arguments> single_of(Result (*)(const Arguments&));

// What is registered for a kernel. Those of backends and Meta find their arguments checked, also under
// inference_mode.
template <auto kernel>
constexpr auto checked = &decltype(single_of(kernel))::template call<kernel, true>;
template <auto kernel>
constexpr auto unchecked = &decltype(single_of(kernel))::template call<kernel, false>;

// A string as a template argument.
template <size_t size>
struct Name {
  char text[size];
  constexpr Name(const char (&name)[size]) { std::copy_n(name, size, text); }
};

// Calls the registered operator hyenarec::<name>: its gradient if one is recorded, else its kernel.
template <Name name, typename Result, typename Arguments>
Result dispatch(const Arguments& arguments) {
  using Signature = typename Single<Result, Arguments>::Signature;
  const auto find = [] {
    return c10::Dispatcher::singleton().findSchemaOrThrow(
        (std::string("hyenarec::") + name.text).c_str(), "");
  };
  static const auto op = find().template typed<Signature>();  // it takes a while
  return std::apply([&](auto&... each) { return op.call(each...); }, arguments.each());
}

// The Meta kernel of an operator whose result is like its first argument.
template <typename Arguments>
at::Tensor meta_like_first(const Arguments& arguments) {
  const at::Tensor& first = std::get<0>(arguments.each());
  return at::empty_symint(first.sym_sizes(), first.options());
}

// Calls visit(i, tensor) for the first `count` tensors among the arguments: those that have a gradient come
// first. `tensor` is nullptr for one that is absent.
template <size_t count, typename Arguments, typename Visit>
void for_each_tensor(const Arguments& arguments, const Visit& visit) {
  size_t i = 0;
  const auto take = [&](const auto& argument) {
    using T = std::remove_cvref_t<decltype(argument)>;
    if constexpr (is_tensor<T>) {
      if (i == count) return;
      if constexpr (std::is_same_v<T, at::Tensor>)
        visit(i, &argument);
      else
        visit(i, argument ? &*argument : nullptr);
      ++i;
    }
  };
  std::apply([&](const auto&... each) { (take(each), ...); }, arguments.each());
}

// Room for the gradients of the first `count` tensors: contiguous, like the tensor in shape and dtype. One
// that is not needed, or whose tensor is absent, is [0].
template <size_t count, typename Arguments>
std::array<at::Tensor, count> empty_gradients(
    const Arguments& arguments, const std::array<bool, count>& needed) {
  std::array<at::Tensor, count> gradients;
  for_each_tensor<count>(arguments, [&](size_t i, const at::Tensor* tensor) {
    const auto& like = tensor ? *tensor : std::get<0>(arguments.each());
    gradients[i] = empty_gradient(needed[i] && tensor, like);
  });
  return gradients;
}

// The arguments of a backward operator: the gradient of the result, those of the forward operator, and of
// which of its first `count` tensors the gradient is needed. Forward::check_backward(grad) checks them.
template <typename Forward, size_t count>
struct BackwardArguments {
  const at::Tensor& grad;
  Forward forward;
  std::array<bool, count> needs_grad;

  auto each() const { return std::tuple_cat(std::tie(grad), forward.each(), std::tie(needs_grad)); }
  void check() const { forward.check_backward(grad); }
};

// Its Meta kernel.
template <typename Arguments>
auto meta_gradients(const Arguments& arguments) {
  return std::tuple_cat(empty_gradients(arguments.forward, arguments.needs_grad));
}

}  // namespace detail
}  // namespace hyenarec
