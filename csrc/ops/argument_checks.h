// Checks that several operators share. They throw one sentence: operator, argument, what was expected, what
// came.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/core/SymInt.h>

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
    const Argument& argument,
    int64_t dim,
    const c10::SymInt& expected,
    const char* layout,
    const char* symbol);

// Shape, dtype and device of `other`.
void check_like(const Argument& argument, const Argument& other);

}  // namespace hyenarec::detail
