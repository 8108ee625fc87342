// Where an operator's schema, its C++ function and its kernels meet: torch's dispatcher. An operator with many
// arguments has a struct of references to them, `Arguments`; its kernels take that struct.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <utility>

namespace hyenarec::detail {

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

// The function of an operator's signature that calls `kernel`, Result(const Arguments&), with its parameters as an
// Arguments: what is registered.
template <typename Signature, auto kernel>
constexpr auto unpacked = &Unpacked<Signature, kernel>::call;

}  // namespace hyenarec::detail
