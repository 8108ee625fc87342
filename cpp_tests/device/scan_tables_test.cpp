// The tables of a scan on a GPU: what their rows times coefficients mean, from the formulas alone.
#include "ops/legendre_scan/cuda/host_tables.h"

#include <gtest/gtest.h>

#include <cmath>

namespace {

using hyenarec::HostScanTables;
using hyenarec::make_scan_tables;

constexpr int64_t kChunk = 32, kN = 6;

// P_n(x) by its explicit sum of powers.
double legendre(int64_t n, double x) {
  double sum = 0;
  for (int64_t k = 0; k <= n / 2; ++k) {
    const auto factorial = [](int64_t i) { return std::tgamma(static_cast<double>(i) + 1); };
    const double term = factorial(2 * n - 2 * k) / (factorial(k) * factorial(n - k) * factorial(n - 2 * k));
    sum += (k % 2 == 0 ? term : -term) * std::pow(x, static_cast<double>(n - 2 * k));
  }
  return sum / std::pow(2.0, static_cast<double>(n));
}
// The place of a time among [first, last], as polynomials see it.
double place(double time, double first, double last) { return 2 * (time - first) / (last - first) - 1; }

TEST(ScanTables, BeginWithThePolynomialsAtTheNearLags) {
  for (const int64_t horizon : {20, 200}) {
    const auto tables = make_scan_tables<double>(horizon, kChunk, kN, horizon, 0);
    for (int64_t lag = 0; lag < kChunk; ++lag) {
      for (int64_t n = 0; n < kN; ++n) {
        const double expected =
            lag < horizon ? legendre(n, place(static_cast<double>(lag), 0, static_cast<double>(horizon - 1)))
                          : 0.0;
        EXPECT_NEAR(tables.contraction[static_cast<size_t>(lag * kN + n)], expected, 1e-12);
        EXPECT_NEAR(tables.gradient[static_cast<size_t>(lag * kN + n)], expected, 1e-12);
      }
    }
  }
}

TEST(ScanTables, EndTheGradientWithTheIdentity) {
  const auto tables = make_scan_tables<float>(200, kChunk, kN, 200, 0);
  ASSERT_EQ(tables.gradient.size(), static_cast<size_t>((kChunk + kN) * kN));
  for (int64_t i = 0; i < kN * kN; ++i)
    EXPECT_EQ(tables.gradient[static_cast<size_t>(kChunk * kN + i)], i / kN == i % kN ? 1.0 : 0.0);
}

// P_n of the lag t - s from the entries (q, p), for an event s of a chunk and an output t behind it.
double from_entries(const HostScanTables<double>& tables, int64_t chunk, int64_t n, double t, double s) {
  const int64_t start = chunk * kChunk, moments = tables.shapes[static_cast<size_t>(chunk)].num_moments;
  int64_t row = tables.shapes[static_cast<size_t>(chunk)].transfer;
  double sum = 0;
  for (int64_t q = 0; q < moments; ++q) {
    for (int64_t p = 0; p < kN - q; ++p, ++row) {
      const double entry = tables.contraction[static_cast<size_t>(row * kN + n)];
      if (p + q > n) {
        EXPECT_EQ(entry, 0.0);
      }
      sum += entry * legendre(p, place(t, static_cast<double>(start + kChunk), 199)) *
             legendre(q, place(s, static_cast<double>(start), static_cast<double>(start + kChunk - 1)));
    }
  }
  return sum;
}

TEST(ScanTables, HoldEachChunksTransferInItsRows) {
  const auto tables = make_scan_tables<double>(200, kChunk, kN, 200, 0);
  ASSERT_EQ(tables.shapes.size(), 7);
  for (int64_t chunk = 0; chunk + 1 < 7; ++chunk) {
    for (int64_t n = 0; n < kN; ++n) {
      for (const double t : {1.0, 20.0, 100.0}) {
        const double later = std::min(static_cast<double>((chunk + 1) * kChunk) + t, 199.0);
        for (const double s : {0.0, 13.0, 31.0}) {
          const double earlier = static_cast<double>(chunk * kChunk) + s;
          EXPECT_NEAR(
              from_entries(tables, chunk, n, later, earlier), legendre(n, place(later - earlier, 0, 199)),
              1e-12);
        }
      }
    }
  }
}

}  // namespace
