#include "ops_test.h"

namespace {

TEST(LegendreKernel, AgreesWithTheOracle) {
  for (const at::Device device : devices()) {
    for (const Precision precision : {kDouble, kFloat}) {
      for (const oracle::Case& tables : cases_of("legendre_kernel")) {
        const at::Tensor coeffs = argument(tables, "coeffs", device, precision.parameter);
        const at::Tensor decay = argument(tables, "decay", device, precision.parameter);
        const at::Tensor out =
            hyenarec::legendre_kernel(coeffs, decay, tables.integer("horizon"), tables.integer("length"));
        check_case(tables, out, {"coeffs", "decay"}, {coeffs, decay}, precision);
      }
    }
  }
}

TEST(LegendreKernel, NamesWhatIsWrong) {
  const at::Tensor coeffs = at::randn({4, 3}), decay = at::rand({4});
  expect_error([&] { hyenarec::legendre_kernel(coeffs[0], decay, 5, 5); }, {"coeffs", "[D, N]"});
  expect_error([&] { hyenarec::legendre_kernel(coeffs, at::rand({5}), 5, 5); }, {"decay", "[5]"});
  expect_error([&] { hyenarec::legendre_kernel(coeffs, decay.to(at::kDouble), 5, 5); }, {"decay"});
  expect_error([&] { hyenarec::legendre_kernel(coeffs, decay, 0, 0); }, {"horizon"});
  expect_error([&] { hyenarec::legendre_kernel(coeffs, decay, 5, 6); }, {"length"});
  expect_error([&] { hyenarec::legendre_kernel(coeffs, -1 - decay, 5, 5); }, {"decay"});
}

}  // namespace
