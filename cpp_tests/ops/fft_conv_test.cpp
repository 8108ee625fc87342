#include "ops_test.h"

namespace {

TEST(FftConv, AgreesWithTheOracle) {
  for (const at::Device device : devices()) {
    for (const Precision precision : precisions(device)) {
      for (const oracle::Case& tables : cases_of("fft_conv")) {
        const at::Tensor u = argument(tables, "u", device, precision.activation);
        const at::Tensor kernel = argument(tables, "kernel", device, precision.parameter);
        const auto skip = optional_argument(tables, "skip", device, precision.parameter);
        const auto pre_gate = optional_argument(tables, "pre_gate", device, precision.activation);
        const auto post_gate = optional_argument(tables, "post_gate", device, precision.activation);
        const at::Tensor out = hyenarec::fft_conv(u, kernel, skip, pre_gate, post_gate);
        EXPECT_EQ(out.scalar_type(), precision.activation);
        EXPECT_TRUE(out.is_contiguous());
        check_case(
            tables, out, {"u", "kernel", "skip", "pre_gate", "post_gate"},
            {u, kernel, skip.value_or(at::Tensor()), pre_gate.value_or(at::Tensor()),
             post_gate.value_or(at::Tensor())},
            precision);
      }
    }
  }
}

TEST(FftConv, IsTheSameForStridedArguments) {
  const at::Tensor wide = at::randn({2, 30, 10});
  const at::Tensor u = wide.slice(2, 0, 5), gate = wide.slice(2, 5, 10);
  const at::Tensor kernel = at::randn({30, 5}).t();
  const at::Tensor strided = hyenarec::fft_conv(u, kernel, std::nullopt, gate, gate);
  const at::Tensor dense = hyenarec::fft_conv(
      u.contiguous(), kernel.contiguous(), std::nullopt, gate.contiguous(), gate.contiguous());
  EXPECT_TRUE(at::equal(strided, dense));
}

TEST(FftConv, NamesWhatIsWrong) {
  const at::Tensor u = at::randn({2, 6, 4}), kernel = at::randn({4, 6});
  expect_error([&] { hyenarec::fft_conv(u[0], kernel); }, {"u", "[6, 4]"});
  expect_error([&] { hyenarec::fft_conv(u.to(at::kInt), kernel); }, {"u"});
  expect_error([&] { hyenarec::fft_conv(u, at::randn({5, 6})); }, {"kernel", "[5, 6]"});
  expect_error([&] { hyenarec::fft_conv(u, kernel, at::randn({3})); }, {"skip", "[3]"});
  expect_error([&] { hyenarec::fft_conv(u, kernel, std::nullopt, at::randn({2, 6, 3})); }, {"pre_gate"});
  expect_error(
      [&] {
        hyenarec::fft_conv(u, kernel, std::nullopt, std::nullopt, at::randn({2, 5, 4}));
      },
      {"post_gate"});
}

}  // namespace
