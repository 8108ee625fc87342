// Checks that several operators share. They throw one sentence: operator, argument, what was expected, what
// came.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/core/SymInt.h>

#include <optional>

namespace hyenarec::detail {

// The argument a check speaks about.
struct Argument {
  const char* op;
  const char* name;
  const at::Tensor& tensor;
};

// Parameters (kernel, skip, weight, bias) go beside 16-bit activations in float32; else both share a dtype.
inline c10::ScalarType parameter_type(c10::ScalarType activation) {
  return activation == c10::ScalarType::Double ? c10::ScalarType::Double : c10::ScalarType::Float;
}

// float32, float64, bfloat16 or float16. The CPU kernels refuse float16 with the second check.
void check_activation_type(const Argument& argument);
void check_cpu_activation_type(const Argument& argument);

// `why` says where the expectation comes from, as in "like u"; it may be empty.
void check_type(const Argument& argument, c10::ScalarType expected, const char* why);
void check_device(const Argument& argument, const Argument& other);

// `layout` names the dimensions, as in "[D, K]".
void check_rank(const Argument& argument, int64_t rank, const char* layout);
// `symbol` names the dimension that is compared, as in "D".
void check_size(
    const Argument& argument, int64_t dim, const c10::SymInt& expected, const char* layout,
    const char* symbol);

void check_shape(const Argument& argument, const Argument& other);
// Shape, dtype and device of `other`.
void check_like(const Argument& argument, const Argument& other);

// A parameter of `rank` dimensions, the first one `channels` (`symbol` in `layout`), beside an activation.
void check_parameter(
    const Argument& parameter, int64_t rank, const c10::SymInt& channels, const char* layout,
    const char* symbol, const Argument& activation);

// A kernel's parameters without an activation beside them: coeffs [D, N], float32 or float64, decay and skip
// [D].
void check_kernel_parameters(
    const char* op, const at::Tensor& coeffs, const at::Tensor& decay, const std::optional<at::Tensor>& skip,
    const c10::SymInt& horizon);

// An activation in sequences: `packed` (2 dimensions) with offsets [S + 1], `padded` (3 dimensions) without.
void check_sequences(
    const Argument& activation, const std::optional<at::Tensor>& offsets, const char* padded,
    const char* packed);

void check_horizon(const char* op, const c10::SymInt& horizon);  // at least 1
// Both, and padded sequences no longer than it. The length of packed ones is a value: see cpu/tensors.h.
void check_sequences_within(
    const c10::SymInt& horizon, const Argument& activation, const std::optional<at::Tensor>& offsets,
    const char* padded, const char* packed);

// What a *_backward operator returns: a contiguous tensor for the gradient of `argument`, or [0] if unneeded;
// in the argument's dtype unless another is given.
at::Tensor empty_gradient(
    bool needed, const at::Tensor& argument, std::optional<at::ScalarType> dtype = std::nullopt);

// Finite and not negative. For CPU kernels only: it reads the values.
void check_decay_values(const char* op, const at::Tensor& decay);

}  // namespace hyenarec::detail
