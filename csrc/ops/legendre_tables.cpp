#include "legendre_tables.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <list>
#include <mutex>

#include "legendre_math.h"

namespace hyenarec {
namespace {

constexpr size_t kMostTables = 16;  // kept at a time; a model needs one or two

// P_0 .. P_{n-1} at x.
void fill_polynomials(double x, int64_t n, double* values) {
  if (n > 0) values[0] = 1.0;
  for (int64_t k = 1; k < n; ++k)
    values[k] = legendre_next(k - 1, x, values[k - 1], k > 1 ? values[k - 2] : 0.0);
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
std::vector<double> product(
    const std::vector<double>& a,
    const std::vector<double>& b,
    int64_t rows,
    int64_t inner,
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

// Number of leading rows whose followers are all together below `tolerance`.
int64_t significant(const std::vector<double>& row_maxima, double tolerance) {
  double rest = 0.0;
  int64_t count = static_cast<int64_t>(row_maxima.size());
  while (count > 0 && (rest += row_maxima[count - 1]) <= tolerance) --count;
  return count;
}

template <typename scalar_t>
class Builder {
 public:
  Builder(int64_t horizon, int64_t chunk, int64_t num_coeffs)
      : horizon_(horizon), chunk_(chunk), n_(num_coeffs), quadrature_(num_coeffs) {}

  LegendreTables<scalar_t> build(int64_t length) const {
    LegendreTables<scalar_t> tables{horizon_, chunk_, n_, {}, {}, {}, {}};
    tables.basis.resize(n_ * chunk_);
    std::vector<double> values(n_);
    for (int64_t j = 0; j < chunk_; ++j) {
      fill_polynomials(on_interval(j, 0, chunk_ - 1), n_, values.data());
      for (int64_t k = 0; k < n_; ++k) tables.basis[k * chunk_ + j] = static_cast<scalar_t>(values[k]);
    }
    tables.basis_by_column = transposed(tables.basis, n_, chunk_);
    tables.chunks.reserve((length + chunk_ - 1) / chunk_);
    for (int64_t start = 0; start < length; start += chunk_) {
      LegendreChunk<scalar_t> chunk;
      const int64_t next = start + chunk_;
      if (start > 0 && next <= horizon_) fill_local(start, chunk);
      if (start > 0 && next > horizon_) fill_tail(start, tables.tail);
      if (next < horizon_) {
        fill_restriction(start, next, chunk);
        fill_transfer(start, next, chunk);
      }
      tables.chunks.push_back(std::move(chunk));
    }
    return tables;
  }

 private:
  // The place of time t in [-1, 1] when that stands for [first, last]; an interval of one point is at -1.
  static double on_interval(double t, double first, double last) {
    return 2.0 * (t - first) / std::max(last - first, 1.0) - 1.0;
  }
  // The quadrature's nodes on [first, last].
  std::vector<double> nodes_on(double first, double last) const {
    std::vector<double> times(n_);
    for (int64_t i = 0; i < n_; ++i) times[i] = first + (quadrature_.nodes[i] + 1.0) / 2.0 * (last - first);
    return times;
  }
  // [N, N]: row i holds the polynomials of [first, T - 1] at times[i].
  std::vector<double> state_basis(const std::vector<double>& times, int64_t first) const {
    std::vector<double> values(times.size() * n_);
    for (size_t i = 0; i < times.size(); ++i)
      fill_polynomials(on_interval(times[i], static_cast<double>(first), last()), n_, values.data() + i * n_);
    return values;
  }
  double last() const { return static_cast<double>(horizon_ - 1); }

  // Rows beyond `rows` are dropped, and so is what exactness makes zero below the diagonal.
  static std::vector<scalar_t> upper_triangle(const std::vector<double>& matrix, int64_t rows, int64_t n) {
    std::vector<scalar_t> kept(rows * n);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = i; j < n; ++j) kept[i * n + j] = static_cast<scalar_t>(matrix[i * n + j]);
    }
    return kept;
  }

  void fill_local(int64_t start, LegendreChunk<scalar_t>& chunk) const {
    const auto times = nodes_on(static_cast<double>(start), static_cast<double>(start + chunk_ - 1));
    const auto matrix = product(quadrature_.projection, state_basis(times, start), n_, n_, n_);
    std::vector<double> maxima(n_, 0.0);
    for (int64_t k = 0; k < n_; ++k) {
      for (int64_t p = k; p < n_; ++p) maxima[k] = std::max(maxima[k], std::abs(matrix[k * n_ + p]));
    }
    chunk.num_local = significant(maxima, kTolerance);
    chunk.local = upper_triangle(matrix, chunk.num_local, n_);
    chunk.local_by_column = transposed(chunk.local, chunk.num_local, n_);
  }

  void fill_restriction(int64_t start, int64_t next, LegendreChunk<scalar_t>& chunk) const {
    const auto times = nodes_on(static_cast<double>(next), last());
    auto matrix = product(quadrature_.projection, state_basis(times, start), n_, n_, n_);
    for (int64_t k = 0; k < n_; ++k) matrix[k * n_ + k] -= 1.0;
    chunk.restriction_change = upper_triangle(matrix, n_, n_);
    chunk.restriction_change_by_column = transposed(chunk.restriction_change, n_, n_);
  }

  void fill_tail(int64_t start, std::vector<scalar_t>& tail) const {
    std::vector<double> times;
    for (int64_t t = start; t < horizon_; ++t) times.push_back(static_cast<double>(t));
    const auto values = state_basis(times, start);
    tail.assign(values.begin(), values.end());
  }

  void fill_transfer(int64_t start, int64_t next, LegendreChunk<scalar_t>& chunk) const {
    const int64_t n = n_;
    const auto later = nodes_on(static_cast<double>(next), last());
    const auto earlier = nodes_on(static_cast<double>(start), static_cast<double>(next - 1));
    // kernel[t][(s, degree)] -> [p][(s, degree)], then for each p and degree the nodes s -> q.
    std::vector<double> kernel(n * n * n);
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t s = 0; s < n; ++s)
        fill_polynomials(on_interval(later[t] - earlier[s], 0.0, last()), n, kernel.data() + (t * n + s) * n);
    }
    const auto by_later = product(quadrature_.projection, kernel, n, n, n * n);
    std::vector<double> full(n * n * n);  // [q][p][degree]
    for (int64_t p = 0; p < n; ++p) {
      const std::vector<double> slice(by_later.begin() + p * n * n, by_later.begin() + (p + 1) * n * n);
      const auto by_both = product(quadrature_.projection, slice, n, n, n);
      for (int64_t q = 0; q < n; ++q) std::copy_n(by_both.begin() + q * n, n, full.begin() + (q * n + p) * n);
    }
    std::vector<double> maxima(n, 0.0);
    for (int64_t q = 0; q < n; ++q) {
      for (int64_t p = 0; p < n - q; ++p) {
        for (int64_t degree = p + q; degree < n; ++degree)
          maxima[q] = std::max(maxima[q], std::abs(full[(q * n + p) * n + degree]));
      }
    }
    chunk.num_moments = significant(maxima, kTolerance);
    for (int64_t q = 0; q < chunk.num_moments; ++q) {
      for_each_run(n - q, [&](int64_t first, int64_t size) {
        for (int64_t degree = first + q; degree < n; ++degree) {
          for (int64_t p = first; p < first + size; ++p) {
            const double value = p + q > degree ? 0.0 : full[(q * n + p) * n + degree];
            chunk.transfer.push_back(static_cast<scalar_t>(value));
          }
        }
      });
    }
    chunk.transfer.shrink_to_fit();
  }

  static constexpr double kTolerance = std::numeric_limits<scalar_t>::epsilon() / 8.0;
  const int64_t horizon_, chunk_, n_;
  const Quadrature quadrature_;
};

// The tables in use, latest first.
template <typename scalar_t>
class Cache {
 public:
  using Shared = std::shared_ptr<const LegendreTables<scalar_t>>;

  Shared get(int64_t horizon, int64_t chunk, int64_t num_coeffs, int64_t num_chunks) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = std::find_if(tables_.begin(), tables_.end(), [&](const Shared& kept) {
      return kept->horizon == horizon && kept->chunk == chunk && kept->num_coeffs == num_coeffs;
    });
    Shared tables = found == tables_.end() ? nullptr : *found;
    if (found != tables_.end()) tables_.erase(found);
    if (!tables || static_cast<int64_t>(tables->chunks.size()) < num_chunks) {
      // Twice as far as before, so that ever longer histories don't build the tables each time.
      const int64_t built = tables ? 2 * static_cast<int64_t>(tables->chunks.size()) : 0;
      const int64_t length = std::min(std::max(num_chunks, built) * chunk, horizon);
      tables = std::make_shared<const LegendreTables<scalar_t>>(
          Builder<scalar_t>(horizon, chunk, num_coeffs).build(length));
    }
    tables_.push_front(tables);
    if (tables_.size() > kMostTables) tables_.pop_back();
    return tables;
  }

 private:
  std::mutex mutex_;
  std::list<Shared> tables_;
};

}  // namespace

int64_t legendre_chunk_length(int64_t num_coeffs) {
  return num_coeffs <= 9 ? 16 : num_coeffs <= 17 ? 32 : 64;
}

int64_t legendre_backward_chunk_length(int64_t num_coeffs, int64_t horizon) {
  constexpr int64_t kLongHorizon = 8192, kLongest = 64;
  const int64_t chunk = legendre_chunk_length(num_coeffs);
  return horizon >= kLongHorizon ? std::min(2 * chunk, kLongest) : chunk;
}

template <typename scalar_t>
std::shared_ptr<const LegendreTables<scalar_t>> legendre_tables(
    int64_t horizon, int64_t chunk, int64_t num_coeffs, int64_t length) {
  static Cache<scalar_t> cache;
  return cache.get(horizon, chunk, num_coeffs, (length + chunk - 1) / chunk);
}

template HYENAREC_API std::shared_ptr<const LegendreTables<float>> legendre_tables(
    int64_t, int64_t, int64_t, int64_t);
template HYENAREC_API std::shared_ptr<const LegendreTables<double>> legendre_tables(
    int64_t, int64_t, int64_t, int64_t);

}  // namespace hyenarec
