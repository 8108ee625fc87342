// Where an operator's schema, its C++ function and its kernels meet: torch's dispatcher. An operator with
// many arguments has a struct of references to them, `Arguments`; its kernels take that struct.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string>
#include <utility>

namespace hyenarec {

using OptionalTensor = std::optional<at::Tensor>;

namespace detail {

// The registered operator hyenarec::<name>, to be called. For a static variable: finding it takes a while.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find_operator(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("hyenarec::" + name).c_str(), "").typed<Signature>();
}

template <typename Signature, auto kernel>
struct Unpacked;
template <typename Result, typename... Parameters, typename Arguments, Result (*kernel)(const Arguments&)>
struct Unpacked<Result(Parameters...), kernel> {
  static Result call(Parameters... parameters) {
    return kernel(Arguments{std::forward<Parameters>(parameters)...});
  }
};

// The function of an operator's signature that calls `kernel`, Result(const Arguments&), with its parameters
// as an Arguments: what is registered.
template <typename Signature, auto kernel>
constexpr auto unpacked = &Unpacked<Signature, kernel>::call;

// The signature of an operator with the arguments of `Signature` that returns something else.
template <typename Result, typename Signature>
struct Returning;
template <typename Result, typename Other, typename... Parameters>
struct Returning<Result, Other(Parameters...)> {
  using type = Result(Parameters...);
};

// The signature of its backward operator: the gradient of the result, the arguments, then what `Extra` says.
template <typename Gradients, typename Signature, typename... Extra>
struct Backward;
template <typename Gradients, typename Result, typename... Parameters, typename... Extra>
struct Backward<Gradients, Result(Parameters...), Extra...> {
  using type = Gradients(const at::Tensor&, Parameters..., Extra...);
};

}  // namespace detail
}  // namespace hyenarec
