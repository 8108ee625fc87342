#include "host_tables.h"

#include <algorithm>

#include "../table_builder.h"
#include "../tables.h"

namespace hyenarec {
namespace {

// Appends `rows` rows of n numbers, each followed by zeros up to `pitch`.
template <typename T, typename From>
void append_rows(const From* matrix, int64_t rows, int64_t n, int64_t pitch, std::vector<T>& to) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < pitch; ++j) to.push_back(j < n ? static_cast<T>(matrix[i * n + j]) : T(0));
  }
}
// The same, and then zero rows up to `all_rows`.
template <typename T>
void append_padded(
    const std::vector<T>& matrix, int64_t all_rows, int64_t n, int64_t pitch, std::vector<T>& to) {
  const int64_t rows = n > 0 ? static_cast<int64_t>(matrix.size()) / n : 0;
  append_rows(matrix.data(), rows, n, pitch, to);
  to.resize(to.size() + (all_rows - rows) * pitch, T(0));
}

// (1 + a) (1 + b) - 1 of upper triangular n x n matrices: how two restrictions together differ from none.
std::vector<double> combined(const std::vector<double>& a, const std::vector<double>& b, int64_t n) {
  std::vector<double> c(n * n);
  for (int64_t i = 0; i < n * n; ++i) c[i] = a[i] + b[i];
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t m = i; m < n; ++m) {
      for (int64_t j = m; j < n; ++j) c[i * n + j] += a[i * n + m] * b[m * n + j];
    }
  }
  return c;
}

// P_0 .. P_{n-1} at the first `lags` lags, row by row; zeros from the horizon on.
std::vector<double> near_polynomials(int64_t horizon, int64_t lags, int64_t n) {
  std::vector<double> rows(lags * n, 0.0);
  for (int64_t lag = 0; lag < std::min(lags, horizon); ++lag)
    detail::fill_polynomials(legendre_position(lag, horizon), n, rows.data() + lag * n);
  return rows;
}

// Appends a row for each moment q and p < n - q: transfer[q, p, ..], zeros below p + q.
template <typename T>
void append_transfer(const LegendreChunk<T>& chunk, int64_t n, std::vector<T>& to) {
  const auto transfer = transfer_in_order(chunk, n);
  auto from = transfer.begin();
  for (int64_t q = 0; q < chunk.num_moments; ++q) {
    for (int64_t first = q; first < n; ++first) {  // p + q
      to.resize(to.size() + first, T(0));
      to.insert(to.end(), from, from + (n - first));
      from += n - first;
    }
  }
}

}  // namespace

template <typename T>
HostScanTables<T> make_scan_tables(
    int64_t horizon, int64_t chunk, int64_t num_coeffs, int64_t length, int64_t segment_chunks) {
  const int64_t n = num_coeffs, pitch = scan_pitch(n), chunks = (length + chunk - 1) / chunk;
  const auto tables = legendre_tables<T>(horizon, chunk, n, length);
  HostScanTables<T> flat;
  flat.horizon = horizon;
  flat.num_coeffs = n;
  flat.gradient = near_polynomials(horizon, chunk, n);
  append_rows(flat.gradient.data(), chunk, n, n, flat.contraction);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) flat.gradient.push_back(i == j ? 1.0 : 0.0);
  }
  for (int64_t i = 0; i < chunks; ++i) {
    const auto& part = tables->chunks[i];
    const auto first_row = static_cast<int64_t>(flat.contraction.size()) / n;
    flat.shapes.push_back({part.num_local, part.num_moments, first_row});
    flat.most_moments = std::max(flat.most_moments, part.num_moments);
    append_padded(part.local, n, n, pitch, flat.matrices);
    append_padded(part.restriction_change, n, n, pitch, flat.matrices);
    append_transfer(part, n, flat.contraction);
  }
  if (!tables->tail.empty() && horizon / chunk < chunks) {
    flat.tail_chunk = horizon / chunk;
    append_padded(tables->tail, chunk, n, pitch, flat.tail);
  }
  if (segment_chunks > 0) {
    const auto exact = legendre_tables<double>(horizon, chunk, n, length);
    for (int64_t first = 0; first + segment_chunks < chunks; first += segment_chunks) {
      auto jump = exact->chunks[first].restriction_change;
      for (int64_t i = 1; i < segment_chunks; ++i)
        jump = combined(exact->chunks[first + i].restriction_change, jump, n);
      append_rows(jump.data(), n, n, pitch, flat.jumps);
    }
  }
  return flat;
}

template HostScanTables<float> make_scan_tables(int64_t, int64_t, int64_t, int64_t, int64_t);
template HostScanTables<double> make_scan_tables(int64_t, int64_t, int64_t, int64_t, int64_t);

}  // namespace hyenarec
