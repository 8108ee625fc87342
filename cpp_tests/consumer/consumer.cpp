// Calls HyenaRec's operators from C++: reads their inputs from a text file, prints what they return.
//
//   consumer <file>
//
// Both are blocks of "name rank size... value..." separated by white space, values in full float32 precision.
#include <hyenarec/hyenarec.h>
#include <torch/torch.h>

#include <cstdio>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

using Tensors = std::map<std::string, at::Tensor>;

static Tensors read_tensors(const char* path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  Tensors tensors;
  std::string name;
  size_t rank = 0;
  while (file >> name >> rank) {
    std::vector<int64_t> sizes(rank);
    for (int64_t& size : sizes) file >> size;
    const at::Tensor tensor = torch::empty(sizes, torch::kFloat32);
    float* values = tensor.data_ptr<float>();
    for (int64_t i = 0; i < tensor.numel(); ++i) file >> values[i];
    if (!file) throw std::runtime_error("malformed values of " + name);
    tensors[name] = tensor;
  }
  return tensors;
}

static void print_tensor(const std::string& name, const at::Tensor& tensor) {
  std::cout << name << ' ' << tensor.dim();
  for (const int64_t size : tensor.sizes()) std::cout << ' ' << size;
  const at::Tensor flat = tensor.contiguous().view(-1);
  for (int64_t i = 0; i < flat.numel(); ++i) std::cout << ' ' << std::setprecision(9) << flat[i].item<float>();
  std::cout << '\n';
}

int main(int argc, char** argv) try {
  if (argc != 2) throw std::runtime_error("usage: consumer <file of tensors>");
  Tensors in = read_tensors(argv[1]);
  in.at("u").requires_grad_(true);
  in.at("coeffs").requires_grad_(true);

  const int64_t length = in.at("u").size(1);
  const at::Tensor kernel = hyenarec::legendre_kernel(in.at("coeffs"), in.at("decay"), length, length);
  const at::Tensor filtered = hyenarec::short_conv(in.at("u"), in.at("weight"), in.at("bias"));
  const at::Tensor out =
      hyenarec::fft_conv(filtered, kernel, in.at("skip"), in.at("pre_gate"), in.at("post_gate"));
  out.square().sum().backward();

  print_tensor("legendre_kernel", kernel);
  print_tensor("short_conv", filtered);
  print_tensor("fft_conv", out);
  print_tensor("grad_u", in.at("u").grad());
  print_tensor("grad_coeffs", in.at("coeffs").grad());
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "consumer: %s\n", error.what());
  return 1;
}
