#include "scan_tables.h"

#include <algorithm>

#include "../legendre_tables.h"

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

}  // namespace

template <typename T>
HostScanTables<T> make_scan_tables(
    int64_t horizon,
    int64_t chunk,
    int64_t num_coeffs,
    int64_t pitch,
    int64_t length,
    int64_t segment_chunks) {
  const int64_t n = num_coeffs;
  const auto tables = legendre_tables<T>(horizon, chunk, n, length);
  HostScanTables<T> flat;
  flat.chunks = (length + chunk - 1) / chunk;
  for (int64_t i = 0; i < flat.chunks; ++i) {
    const auto& part = tables->chunks[i];
    flat.shapes.insert(
        flat.shapes.end(), {part.num_local, part.num_moments, static_cast<int64_t>(flat.transfer.size())});
    flat.most_moments = std::max(flat.most_moments, part.num_moments);
    append_padded(part.local, n, n, pitch, flat.matrices);
    append_padded(part.restriction_change, n, n, pitch, flat.matrices);
    const auto transfer = transfer_in_order(part, n);
    flat.transfer.insert(flat.transfer.end(), transfer.begin(), transfer.end());
  }
  if (!tables->tail.empty() && horizon / chunk < flat.chunks) {
    flat.tail_chunk = horizon / chunk;
    append_padded(tables->tail, chunk, n, pitch, flat.tail);
  }
  if (segment_chunks > 0) {
    const auto exact = legendre_tables<double>(horizon, chunk, n, length);
    for (int64_t first = 0; first + segment_chunks < flat.chunks; first += segment_chunks) {
      auto jump = exact->chunks[first].restriction_change;
      for (int64_t i = 1; i < segment_chunks; ++i)
        jump = combined(exact->chunks[first + i].restriction_change, jump, n);
      append_rows(jump.data(), n, n, pitch, flat.jumps);
    }
  }
  return flat;
}

template HostScanTables<float> make_scan_tables(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
template HostScanTables<double> make_scan_tables(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);

}  // namespace hyenarec
