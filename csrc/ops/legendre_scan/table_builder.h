// Builds the constants of tables.h and cpu/segment_tables.h, in double. No torch here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "math.h"
#include "tables.h"

namespace hyenarec::detail {

// P_0 .. P_{n-1} at x.
inline void fill_polynomials(double x, int64_t n, double* values) {
  if (n > 0) values[0] = 1.0;
  for (int64_t k = 1; k < n; ++k)
    values[k] = legendre_next(k - 1, x, values[k - 1], k > 1 ? values[k - 2] : 0.0);
}

// The times [first, last], which polynomials see as [-1, 1]; a single one as -1.
struct Interval {
  double first, last;
  double place(double time) const { return 2.0 * (time - first) / std::max(last - first, 1.0) - 1.0; }
};

inline Interval events(int64_t begin, int64_t end) {
  return {static_cast<double>(begin), static_cast<double>(end - 1)};
}

// Gauss-Legendre quadrature with n nodes, exact for polynomials of degree < 2n.
struct Quadrature {
  std::vector<double> nodes;
  // projection [n, n]: coefficients of a polynomial of degree < n from its values at the nodes.
  std::vector<double> projection;

  explicit Quadrature(int64_t n) : nodes(n), projection(n * n) {
    std::vector<double> values(n + 1);
    for (int64_t i = 0; i < n; ++i) {
      double x = -std::cos(M_PI * (static_cast<double>(i) + 0.75) / (static_cast<double>(n) + 0.5));
      double slope = 1.0;
      for (int step = 0; step < 100; ++step) {  // Newton; converges in three or four steps
        fill_polynomials(x, n + 1, values.data());
        slope = static_cast<double>(n) * (x * values[n] - values[n - 1]) / (x * x - 1.0);
        const double change = values[n] / slope;
        x -= change;
        if (std::abs(change) < 1e-15) break;
      }
      nodes[i] = x;
      const double weight = 2.0 / ((1.0 - x * x) * slope * slope);
      fill_polynomials(x, n, values.data());
      for (int64_t k = 0; k < n; ++k)
        projection[k * n + i] = (static_cast<double>(k) + 0.5) * weight * values[k];
    }
  }
};

// c = a b for row-major a [rows, inner], b [inner, columns].
inline std::vector<double> product(
    const std::vector<double>& a, const std::vector<double>& b, int64_t rows, int64_t inner,
    int64_t columns) {
  std::vector<double> c(rows * columns, 0.0);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t m = 0; m < inner; ++m) {
      const double factor = a[i * inner + m];
      for (int64_t j = 0; j < columns; ++j) c[i * columns + j] += factor * b[m * columns + j];
    }
  }
  return c;
}

template <typename scalar_t>
std::vector<scalar_t> transposed(const std::vector<scalar_t>& matrix, int64_t rows, int64_t columns) {
  std::vector<scalar_t> result(matrix.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) result[j * rows + i] = matrix[i * columns + j];
  }
  return result;
}

// The largest coefficient that something may have, by degree; zero past its end.
using Scale = std::vector<double>;

// The largest number of each row of an upper triangular matrix [rows, scale], column j times scale[j].
inline Scale row_maxima(const std::vector<double>& matrix, const Scale& scale) {
  const size_t columns = scale.size();
  Scale maxima(columns > 0 ? matrix.size() / columns : 0, 0.0);
  for (size_t i = 0; i < maxima.size(); ++i) {
    for (size_t j = i; j < columns; ++j)
      maxima[i] = std::max(maxima[i], std::abs(matrix[i * columns + j]) * scale[j]);
  }
  return maxima;
}

// The first `rows` rows of a matrix [n, n], without what exactness makes zero below the diagonal.
template <typename scalar_t>
std::vector<scalar_t> upper_rows(const std::vector<double>& matrix, int64_t rows, int64_t n) {
  std::vector<scalar_t> kept(rows * n);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = i; j < n; ++j) kept[i * n + j] = static_cast<scalar_t>(matrix[i * n + j]);
  }
  return kept;
}

// The tables of chunks of `chunk` events on a horizon.
template <typename scalar_t>
class LegendreTableBuilder {
 public:
  // Number of leading terms whose followers are all together below so much of a number that is 1.
  static constexpr double kTolerance = std::numeric_limits<scalar_t>::epsilon() / 8.0;
  static int64_t count(const Scale& scale) {
    double rest = 0.0;
    int64_t count = static_cast<int64_t>(scale.size());
    while (count > 0 && (rest += scale[count - 1]) <= kTolerance) --count;
    return count;
  }

  // `kernel` is the scale of the kernels' coefficients, state(R) that of a state, [N], when R events of the
  // horizon are left.
  LegendreTableBuilder(
      int64_t horizon, int64_t chunk, int64_t num_coeffs, Scale kernel, std::function<Scale(int64_t)> state)
      : horizon_(horizon),
        chunk_(chunk),
        n_(num_coeffs),
        degrees_(static_cast<int64_t>(kernel.size())),
        kernel_(std::move(kernel)),
        state_(std::move(state)),
        quadrature_(num_coeffs) {}

  LegendreTables<scalar_t> tables() const { return {horizon_, chunk_, n_, degrees_, {}, {}, {}, {}}; }

  void fill_basis(LegendreTables<scalar_t>& tables) const {
    const auto values = values_of(chunk_at(0), times(0, chunk_));
    tables.basis_by_column.assign(values.begin(), values.end());
    tables.basis = transposed(tables.basis_by_column, chunk_, n_);
  }

  // Appends the chunks of a history of `length` events. With `starts_empty` the first of them has no state to
  // evaluate.
  void fill_chunks(int64_t length, bool starts_empty, LegendreTables<scalar_t>& tables) const {
    tables.chunks.reserve((length + chunk_ - 1) / chunk_);
    int64_t state = count(state_(horizon_));
    for (int64_t start = 0; start < length; start += chunk_) {
      LegendreChunk<scalar_t> chunk;
      const int64_t next = start + chunk_;
      chunk.num_state = state;
      if ((start > 0 || !starts_empty) && next <= horizon_) fill_local(start, chunk);
      if (next < horizon_) {
        // Never more than before, also where rounding decides what counts.
        chunk.num_next = state = std::min(state, count(state_(horizon_ - next)));
        fill_restriction(start, next, chunk);
        fill_transfer(start, next, chunk);
      }
      tables.chunks.push_back(std::move(chunk));
    }
  }

  // The polynomials of the horizon at its first `count` events, [N, count]; past its end, those at the end.
  std::vector<double> first_values(int64_t count) const {
    auto at = times(0, count);
    for (double& time : at) time = std::min(time, static_cast<double>(horizon_ - 1));
    return transposed(values_of(from(0), at), count, n_);
  }

  // After fill_chunks, for the chunk that the horizon cuts; the first one has no state to evaluate.
  void fill_tail(LegendreTables<scalar_t>& tables) const {
    const int64_t start = tables.reach() - chunk_;
    if (start <= 0 || tables.reach() <= horizon_) return;
    const auto values = values_of(from(start), times(start, horizon_));
    tables.tail.assign(values.begin(), values.end());
  }

  // [N, N], upper triangular: the coefficients on `to` of the polynomials of `from`.
  std::vector<double> restricted(const Interval& from, const Interval& to) const {
    return product(quadrature_.projection, values_of(from, nodes_on(to)), n_, n_, n_);
  }

 private:
  // The quadrature's nodes on an interval.
  std::vector<double> nodes_on(const Interval& interval) const {
    std::vector<double> times(n_);
    for (int64_t i = 0; i < n_; ++i)
      times[i] = interval.first + (quadrature_.nodes[i] + 1.0) / 2.0 * (interval.last - interval.first);
    return times;
  }
  // [times, N]: row i holds the interval's polynomials at times[i].
  std::vector<double> values_of(const Interval& interval, const std::vector<double>& times) const {
    std::vector<double> values(times.size() * n_);
    for (size_t i = 0; i < times.size(); ++i)
      fill_polynomials(interval.place(times[i]), n_, values.data() + i * n_);
    return values;
  }
  static std::vector<double> times(int64_t begin, int64_t end) {
    std::vector<double> result(end - begin);
    std::iota(result.begin(), result.end(), static_cast<double>(begin));
    return result;
  }
  Interval from(int64_t start) const { return events(start, horizon_); }
  Interval chunk_at(int64_t start) const { return events(start, start + chunk_); }

  void fill_local(int64_t start, LegendreChunk<scalar_t>& chunk) const {
    const auto matrix = restricted(from(start), chunk_at(start));
    chunk.num_local = count(row_maxima(matrix, state_(horizon_ - start)));
    chunk.local = upper_rows<scalar_t>(matrix, chunk.num_local, n_);
    chunk.local_by_column = transposed(chunk.local, chunk.num_local, n_);
  }

  void fill_restriction(int64_t start, int64_t next, LegendreChunk<scalar_t>& chunk) const {
    auto matrix = restricted(from(start), from(next));
    for (int64_t k = 0; k < n_; ++k) matrix[k * n_ + k] -= 1.0;
    chunk.restriction_change = upper_rows<scalar_t>(matrix, n_, n_);
    chunk.restriction_change_by_column = transposed(chunk.restriction_change, n_, n_);
  }

  void fill_transfer(int64_t start, int64_t next, LegendreChunk<scalar_t>& chunk) const {
    const auto full = transfer(start, next);
    const auto value = [&](int64_t q, int64_t p, int64_t degree) { return full[(q * n_ + p) * n_ + degree]; };
    Scale moments(n_, 0.0);
    for (int64_t q = 0; q < degrees_; ++q) {
      for (int64_t p = 0; p < std::min(chunk.num_next, degrees_ - q); ++p) {
        for (int64_t degree = p + q; degree < degrees_; ++degree)
          moments[q] = std::max(moments[q], std::abs(value(q, p, degree)) * kernel_[degree]);
      }
    }
    chunk.num_moments = count(moments);
    for (int64_t q = 0; q < chunk.num_moments; ++q) {
      for_each_run(std::min(chunk.num_next, degrees_ - q), [&](int64_t first, int64_t size) {
        for (int64_t degree = first + q; degree < degrees_; ++degree) {
          for (int64_t p = first; p < first + size; ++p)
            chunk.transfer.push_back(
                p + q > degree ? scalar_t(0) : static_cast<scalar_t>(value(q, p, degree)));
        }
      });
    }
    chunk.transfer.shrink_to_fit();
  }

  // [q, p, degree], N each.
  std::vector<double> transfer(int64_t start, int64_t next) const {
    const int64_t n = n_;
    const auto later = nodes_on(from(next)), earlier = nodes_on(chunk_at(start));
    // kernel[t][(s, degree)] -> [p][(s, degree)], then for each p and degree the nodes s -> q.
    std::vector<double> kernel(n * n * n);
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t s = 0; s < n; ++s)
        fill_polynomials(from(0).place(later[t] - earlier[s]), n, kernel.data() + (t * n + s) * n);
    }
    const auto by_later = product(quadrature_.projection, kernel, n, n, n * n);
    std::vector<double> full(n * n * n);
    for (int64_t p = 0; p < n; ++p) {
      const std::vector<double> slice(by_later.begin() + p * n * n, by_later.begin() + (p + 1) * n * n);
      const auto by_both = product(quadrature_.projection, slice, n, n, n);
      for (int64_t q = 0; q < n; ++q) std::copy_n(by_both.begin() + q * n, n, full.begin() + (q * n + p) * n);
    }
    return full;
  }

  const int64_t horizon_, chunk_, n_, degrees_;
  const Scale kernel_;
  const std::function<Scale(int64_t)> state_;
  const Quadrature quadrature_;
};

}  // namespace hyenarec::detail
