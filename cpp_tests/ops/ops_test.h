// What the tests of the operators' public C++ functions share: comparison with the oracle tables forward and
// backward, in every dtype and on every device present, and errors.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "hyenarec.h"
#include "oracle_tables.h"

using Tensors = std::vector<at::Tensor>;

// How an activation of a dtype is tested: parameters stay in float32 beside 16-bit activations. The tolerance
// is relative to the largest expected number.
struct Precision {
  at::ScalarType activation;
  at::ScalarType parameter;
  double tolerance;
};
inline constexpr Precision kDouble{at::kDouble, at::kDouble, 1e-12};
inline constexpr Precision kFloat{at::kFloat, at::kFloat, 5e-6};
inline constexpr Precision kBFloat16{at::kBFloat16, at::kFloat, 1e-2};
inline constexpr Precision kHalf{at::kHalf, at::kFloat, 2e-3};

inline std::vector<oracle::Case> cases_of(const std::string& op) {
  return oracle::cases_of(HYENAREC_ORACLE_TABLES, op);
}

inline std::vector<at::Device> devices() {
  std::vector<at::Device> found{at::kCPU};
  if (at::hasCUDA() && at::globalContext().hasCUDA() && at::detail::getCUDAHooks().deviceCount() > 0) {
    found.emplace_back(at::kCUDA);
  }
  return found;
}

// A table as an argument: differentiable if it is of a floating type.
inline at::Tensor argument(
    const oracle::Case& tables, const std::string& name, at::Device device, at::ScalarType type) {
  const at::Tensor tensor = at::tensor(tables[name].values, at::kDouble).view(tables[name].sizes);
  return tensor.to(device, type).requires_grad_(at::isFloatingType(type));
}

inline std::optional<at::Tensor> optional_argument(
    const oracle::Case& tables, const std::string& name, at::Device device, at::ScalarType type) {
  if (!tables.has(name)) return std::nullopt;
  return argument(tables, name, device, type);
}

inline void expect_close(
    const oracle::Case& tables, const std::string& name, const at::Tensor& got, double tolerance) {
  SCOPED_TRACE(tables.name() + ": " + name);
  const at::Tensor expected = at::tensor(tables[name].values, at::kDouble).view(tables[name].sizes);
  ASSERT_EQ(got.sizes(), expected.sizes());
  if (expected.numel() == 0) return;
  const double scale = 1 + expected.abs().max().item<double>();
  const double error = (got.detach().to(at::kCPU, at::kDouble) - expected).abs().max().item<double>();
  EXPECT_LE(error, tolerance * scale);
}

// Compares the output and every gradient. `names` are those of `arguments`; absent ones are undefined
// tensors.
inline void check_case(
    const oracle::Case& tables, const at::Tensor& out, const std::vector<std::string>& names,
    const Tensors& arguments, Precision precision) {
  expect_close(tables, "out", out, precision.tolerance);
  Tensors inputs;
  std::vector<std::string> input_names;
  for (size_t i = 0; i < names.size(); ++i) {
    if (!arguments[i].defined()) continue;
    inputs.push_back(arguments[i]);
    input_names.push_back(names[i]);
  }
  const at::Tensor grad = argument(tables, "grad", out.device(), out.scalar_type()).detach();
  const Tensors grads = torch::autograd::grad({out}, inputs, {grad});
  for (size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_EQ(grads[i].scalar_type(), inputs[i].scalar_type());
    expect_close(tables, "grad_" + input_names[i], grads[i], precision.tolerance);
  }
}

inline std::vector<Precision> precisions(at::Device device) {
  std::vector<Precision> all{kDouble, kFloat, kBFloat16};
  if (device.is_cuda()) all.push_back(kHalf);
  return all;
}

// Runs `call`, which must throw an error that holds every one of `words`.
inline void expect_error(const std::function<void()>& call, const std::vector<std::string>& words) {
  try {
    call();
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    for (const std::string& word : words) {
      EXPECT_NE(message.find(word), std::string::npos) << "'" << word << "' is missing in: " << message;
    }
    return;
  }
  ADD_FAILURE() << "no error, expected one with '" << words.front() << "'";
}
