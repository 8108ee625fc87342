// Calls HyenaRec's operators from C++: reads their inputs from a text file, prints what they return.
//
//   consumer <file>
//
// Both are blocks of "name rank size... value..." separated by white space, as in ../oracle_tables.h.
#include <ATen/ATen.h>
#include <hyenarec/hyenarec.h>

#include <cstdio>
#include <exception>
#include <iomanip>
#include <iostream>
#include <stdexcept>
#include <string>

#include "../oracle_tables.h"  // only reads the file

static at::Tensor read_tensor(const oracle::Case& file, const std::string& name) {
  return at::tensor(file[name].as<float>()).view(file[name].sizes);
}

static void print_tensor(const std::string& name, const at::Tensor& tensor) {
  std::cout << name << ' ' << tensor.dim();
  for (const int64_t size : tensor.sizes()) std::cout << ' ' << size;
  const at::Tensor flat = tensor.contiguous().view(-1);
  for (int64_t i = 0; i < flat.numel(); ++i)
    std::cout << ' ' << std::setprecision(9) << flat[i].item<float>();
  std::cout << '\n';
}

int main(int argc, char** argv) try {
  if (argc != 2) throw std::runtime_error("usage: consumer <file of tensors>");
  const oracle::Case file(argv[1]);
  const at::Tensor u = read_tensor(file, "u").requires_grad_(true);
  const at::Tensor coeffs = read_tensor(file, "coeffs").requires_grad_(true);

  const int64_t length = u.size(1);
  const at::Tensor kernel = hyenarec::legendre_kernel(coeffs, read_tensor(file, "decay"), length, length);
  const at::Tensor filtered = hyenarec::short_conv(u, read_tensor(file, "weight"), read_tensor(file, "bias"));
  const at::Tensor out = hyenarec::fft_conv(
      filtered, kernel, read_tensor(file, "skip"), read_tensor(file, "pre_gate"),
      read_tensor(file, "post_gate"));
  out.square().sum().backward();

  const at::Tensor offsets = at::tensor({int64_t{0}, length - 10, 2 * length}, at::kLong);
  const at::Tensor mixed = hyenarec::hyena_mixer(
      read_tensor(file, "x"), read_tensor(file, "short_weight"), read_tensor(file, "short_bias"),
      coeffs.detach(), read_tensor(file, "decay"), 2 * length, read_tensor(file, "skip"), offsets);

  print_tensor("legendre_kernel", kernel);
  print_tensor("short_conv", filtered);
  print_tensor("fft_conv", out);
  print_tensor("hyena_mixer", mixed);
  print_tensor("grad_u", u.grad());
  print_tensor("grad_coeffs", coeffs.grad());
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "consumer: %s\n", error.what());
  return 1;
}
