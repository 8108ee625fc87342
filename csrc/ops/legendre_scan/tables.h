// Constants of the linear-time Legendre scan: they depend on horizon, chunk length and number of coefficients
// only, not on weights or data. No torch here.
//
// The scan cuts time into chunks of C events. What all events before a chunk's start b still contribute to
// the outputs t >= b is exp(-decay (t - b)) times ONE polynomial of degree < N in t, because the kernel is
// one in the lag. Its N coefficients in the Legendre basis of the remaining horizon [b, T - 1] are the state.
// Moving on restricts the polynomial to a shorter interval, which is well conditioned in that basis.
//
//   evaluate  output[b + j] = sum_k basis[k][j] (local state)[k],   the state restricted to the chunk first
//   moments   moment[q]     = sum_j basis[q][j] input[b + j]
//   advance   state'        = exp(-decay C) restriction state + contracted transfer moments
//
// A chunk is short beside the horizon, so a polynomial of degree N - 1 on the horizon is, to rounding, one of
// a lower degree on the chunk: num_local and num_moments say how many terms are left (9 of 17 for T =
// 1,024 and C = 32, 5 for T = 16,384).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../common/macros.h"

namespace hyenarec {

// Events of a chunk on the CPU, and of a stream anywhere: 16 for up to 9 coefficients, else 32. Longer chunks
// cost more inside, shorter ones more between them. Measured, nanoseconds an element on one thread with
// chunks of 16, 32, 64, D = 64: forward at L = 1,024 N = 2 0.64, 0.63, 0.83; N = 9 0.84, 0.77, 0.90; N = 17
// 0.98, 0.85, 1.00; N = 33 1.47, 1.22, 1.23; backward at L = 4,096 N = 2 2.2, 2.3, 2.5; N = 9 2.7, 2.4, 2.9;
// N = 33 3.7, 3.3, 3.5. For N = 9 chunks of 32 are faster, but the largest error of
// benchmarks/legendre_conv.py was then 8.6 times the FFT's, with 16 it is 3.8 times.
constexpr int64_t kShortChunk = 16, kLongChunk = 32, kMaxShortChunkCoeffs = 9;
HYENAREC_API int64_t legendre_chunk_length(int64_t num_coeffs);

// Calls visit(first, size) over [0, count) in runs of 8, 4, 2 and 1: what vector code holds in registers at a
// time.
template <typename Visit>
void for_each_run(int64_t count, const Visit& visit) {
  int64_t first = 0;
  for (const int64_t size : {8, 4, 2, 1}) {
    for (; first + size <= count; first += size) visit(first, size);
  }
}

// What the scan needs to pass through chunk i, which starts at b = i C. All matrices are row-major; those
// named by_column are transposed, so that a loop over either index finds its numbers side by side.
template <typename scalar_t>
struct LegendreChunk {
  // Coefficients that count of the state that it starts with, of the state that it ends with.
  int64_t num_state = 0, num_next = 0;
  // local [num_local, N]: the state on the chunk's own interval [b, b + C - 1]; local[k][p] = 0 for p < k.
  int64_t num_local = 0;
  std::vector<scalar_t> local;
  std::vector<scalar_t> local_by_column;
  // restriction_change [N, N]: the state on the next chunk's horizon [b + C, T - 1] minus the state itself;
  // upper triangular. Restriction is nearly the identity: its difference keeps the digits that hundreds of
  // chunks in single precision would lose. For the same reason use expm1(-decay C), not exp(-decay C).
  std::vector<scalar_t> restriction_change;
  std::vector<scalar_t> restriction_change_by_column;
  // transfer(q, p, n): P_n(u(t - s)) = sum_{p + q <= n} transfer(q, p, n) P_p(t on [b + C, T - 1]) P_q(s on
  // the chunk). For q < num_moments, for each run of p (for_each_run of the less of num_next and num_degrees
  // - q), for n from the run's first p + q to num_degrees - 1: the run's numbers, 0 where p + q > n.
  int64_t num_moments = 0;
  std::vector<scalar_t> transfer;
};

// The transfer of a chunk of legendre_tables() without its zeros: for q < num_moments, p < N - q, n from p +
// q to N - 1.
template <typename scalar_t>
std::vector<scalar_t> transfer_in_order(const LegendreChunk<scalar_t>& chunk, int64_t num_coeffs) {
  std::vector<scalar_t> ordered;
  const scalar_t* run = chunk.transfer.data();
  for (int64_t q = 0; q < chunk.num_moments; ++q) {
    for_each_run(num_coeffs - q, [&](int64_t first, int64_t size) {
      for (int64_t p = first; p < first + size; ++p) {
        for (int64_t n = p + q; n < num_coeffs; ++n)
          ordered.push_back(run[(n - first - q) * size + p - first]);
      }
      run += (num_coeffs - first - q) * size;
    });
  }
  return ordered;
}

template <typename scalar_t>
struct LegendreTables {
  int64_t horizon;
  int64_t chunk;
  int64_t num_coeffs;
  int64_t num_degrees;  // kernels have no more coefficients that are not zero
  // basis [N, C]: P_k at the places of the chunk's events, 2 j / (C - 1) - 1. P_k(-x) = (-1)^k P_k(x).
  std::vector<scalar_t> basis;
  std::vector<scalar_t> basis_by_column;
  // For the chunks of a history up to the length asked for. The horizon's last chunk has no successor, so no
  // restriction and no transfer; if the horizon ends within it, no local: its own interval would reach beyond
  // T - 1, where polynomials explode.
  std::vector<LegendreChunk<scalar_t>> chunks;
  // tail [T - b, N]: what such a chunk has instead, P_n of the remaining horizon at its events.
  std::vector<scalar_t> tail;

  // Events that the chunks cover, past the horizon if it ends within one.
  int64_t reach() const { return static_cast<int64_t>(chunks.size()) * chunk; }
};

// The tables for histories of up to `length` events, 0 <= length <= horizon; chunk >= 2; num_state, num_next
// and num_degrees are N, and chunk 0, which has no state yet, has neither local nor tail. Built in double
// once and kept; from any thread. Terms are dropped where they are below a quarter of scalar_t's rounding.
template <typename scalar_t>
std::shared_ptr<const LegendreTables<scalar_t>> legendre_tables(
    int64_t horizon, int64_t chunk, int64_t num_coeffs, int64_t length);

}  // namespace hyenarec
