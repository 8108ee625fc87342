#include "ops_test.h"

#include <c10/core/InferenceMode.h>

namespace {

TEST(Checks, AlsoRunInInferenceMode) {
  const c10::InferenceMode guard;
  const at::Tensor u = at::randn({2, 6, 4});
  expect_error([&] { hyenarec::fft_conv(u, at::randn({5, 6})); }, {"kernel", "[5, 6]"});
  expect_error([&] { hyenarec::short_conv(u, at::randn({3, 3})); }, {"weight", "[3, 3]"});
  expect_error([&] { hyenarec::legendre_kernel(at::randn({4, 3}), at::rand({5}), 5, 5); }, {"decay", "[5]"});
  expect_error([&] { hyenarec::legendre_conv(u, at::randn({4, 3}), at::rand({5}), 6); }, {"decay", "[5]"});
}

TEST(Gradients, OfGradientsRaise) {
  const at::Tensor u = at::randn({2, 6, 4}, at::kDouble).requires_grad_(true);
  const at::Tensor kernel = at::randn({4, 6}, at::kDouble).requires_grad_(true);
  const at::Tensor loss = hyenarec::fft_conv(u, kernel).square().sum();
  const Tensors grads = torch::autograd::grad({loss}, {u}, {}, std::nullopt, /*create_graph=*/true);
  expect_error([&] { torch::autograd::grad({grads[0].sum()}, {kernel}); }, {"fft_conv"});
}

}  // namespace
