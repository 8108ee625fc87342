// A call's parameters as its tasks use them: for each vector of channels the kernel at the first lags, the
// decay's powers, and the tables contracted with the coefficients.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "segment_tables.h"
#include "tasks.h"

namespace hyenarec::scan {

// What all tasks of one call share.
template <typename compute_t>
struct Problem {
  std::shared_ptr<const SegmentTables<compute_t>> tables;
  int64_t channels;
  const compute_t* coeffs;  // [D, N]
  const compute_t* decay;   // [D]
  const compute_t* skip;    // [D], or nullptr
  int64_t longest;          // events of the longest sequence
  std::vector<Group> groups;

  int64_t num_coeffs() const { return tables->num_coeffs; }
  int64_t chunk() const { return tables->chunk; }
};

// A channel's kernel at the first lags in double, as a polynomial and the decay that multiplies it.
struct NearKernel {
  double polynomial[kMaxChunk] = {};
  double decay_from_start[kMaxChunk + 1];

  template <typename compute_t>
  NearKernel(const Problem<compute_t>& problem, int64_t channel) {
    const int64_t chunk = problem.chunk(), n = problem.num_coeffs();
    const double* basis = problem.tables->basis.data();
    for (int64_t k = 0; k < n; ++k) {
      const double coefficient = problem.coeffs[channel * n + k];
      for (int64_t lag = 0; lag < chunk; ++lag) polynomial[lag] += coefficient * basis[k * chunk + lag];
    }
    const double one_step = std::exp(-static_cast<double>(problem.decay[channel]));
    decay_from_start[0] = 1.0;
    for (int64_t lag = 1; lag <= chunk; ++lag) decay_from_start[lag] = one_step * decay_from_start[lag - 1];
  }
};

// One of the three scans that a call is made of: within segments of full length, within the horizon's cut
// segment, and from segment to segment. Each has its own view of the kernel's coefficients, and a contraction
// for each chunk that has a successor.
template <typename compute_t>
struct ScanPart {
  const LegendreTables<compute_t>* tables;
  // [num_degrees, N]: its coefficients from the call's; nullptr: they are the same.
  const std::vector<double>* restriction;
  std::vector<int64_t> rows;  // [chunk]: where its contraction begins

  int64_t num_degrees() const { return tables->num_degrees; }
  ContractionShape shape(int64_t i) const {
    return {tables->chunks[i].num_moments, tables->chunks[i].num_next, tables->num_degrees};
  }
  int64_t count() const { return static_cast<int64_t>(rows.size()); }

  // Its coefficients for a channel whose coefficients are `coeffs`.
  double coefficient(const compute_t* coeffs, int64_t k) const {
    if (!restriction) return coeffs[k];
    const int64_t n = tables->num_coeffs;
    double sum = 0.0;
    for (int64_t j = k; j < n; ++j) sum += (*restriction)[k * n + j] * static_cast<double>(coeffs[j]);
    return sum;
  }
  // Adds to the gradient of the call's coefficients that of its own.
  void add_coefficient_grads(const double* own, double* coeffs) const {
    const int64_t n = tables->num_coeffs;
    for (int64_t k = 0; k < num_degrees(); ++k) {
      if (!restriction) {
        coeffs[k] += own[k];
      } else {
        for (int64_t j = k; j < n; ++j) coeffs[j] += (*restriction)[k * n + j] * own[k];
      }
    }
  }
};

// The contractions that sequences of up to `longest` events need, one after another.
template <typename compute_t>
struct Contractions {
  ScanPart<compute_t> whole, cut, between;
  int64_t rows_within = 0;  // of whole and cut, which come first
  int64_t rows = 0;

  explicit Contractions(const SegmentTables<compute_t>& tables, int64_t longest)
      : whole{&tables.whole.tables, &tables.whole.restriction, {}},
        cut{&tables.cut.tables, &tables.cut.restriction, {}},
        between{&tables.between, nullptr, {}} {
    const int64_t in_segment = std::min(longest, tables.segment);
    const int64_t last_begin = longest > 0 ? (longest - 1) / tables.segment * tables.segment : 0;
    add(in_segment, whole);
    add(tables.is_cut(last_begin / tables.segment) ? longest - last_begin : 0, cut);
    rows_within = rows;
    add(longest, between);
  }
  const ScanPart<compute_t>& within(bool is_cut) const { return is_cut ? cut : whole; }
  std::array<const ScanPart<compute_t>*, 3> parts() const { return {&whole, &cut, &between}; }

 private:
  // All chunks but the last of `events` have a successor.
  void add(int64_t events, ScanPart<compute_t>& part) {
    for (int64_t i = 0; (i + 1) * part.tables->chunk < events; ++i) {
      part.rows.push_back(rows);
      rows += part.shape(i).size();
    }
  }
};

// What a vector of channels needs at every event: rows of lanes.
template <typename V>
struct ScanParameters {
  const V* near;                  // [C] the kernel at the first lags, skip added to lag 0
  const V* decay_from_start;      // [C] exp(-decay j)
  const V* decay_to_end;          // [C] exp(-decay (C - j))
  const V* chunk_decay_change;    // [1] expm1(-decay C)
  const V* segment_decay_change;  // [1] expm1(-decay S)
  const V* contracted;            // as Contractions says

  ScanParameters(const V* rows, int64_t chunk)
      : near(rows),
        decay_from_start(near + chunk),
        decay_to_end(decay_from_start + chunk),
        chunk_decay_change(decay_to_end + chunk),
        segment_decay_change(chunk_decay_change + 1),
        contracted(segment_decay_change + 1) {}
};

// Rows of a ScanParameters before its contractions.
inline int64_t plain_parameter_rows(int64_t chunk) { return 3 * chunk + 2; }

// Writes those rows for the channels [first, first + count); absent channels are 0.
template <typename compute_t>
void fill_plain_parameters(
    const Problem<compute_t>& problem, int64_t first, int64_t count, int64_t lanes, compute_t* rows) {
  const int64_t chunk = problem.chunk();
  std::fill_n(rows, plain_parameter_rows(chunk) * lanes, compute_t(0));
  for (int64_t lane = 0; lane < count; ++lane) {
    const NearKernel kernel(problem, first + lane);
    compute_t* to = rows + lane;
    // Numbers far below rounding become zero: denormal ones, in which fast decays end, would take the
    // processor ten times as long.
    constexpr double kSmallest =
        std::numeric_limits<compute_t>::min() / std::numeric_limits<compute_t>::epsilon();
    const auto put = [&](double value) {
      *to = std::abs(value) < kSmallest ? compute_t(0) : static_cast<compute_t>(value);
      to += lanes;
    };
    const double skip = problem.skip ? problem.skip[first + lane] : 0.0;
    const double decay = problem.decay[first + lane];
    put(kernel.polynomial[0] + skip);
    for (int64_t lag = 1; lag < chunk; ++lag) put(kernel.polynomial[lag] * kernel.decay_from_start[lag]);
    for (int64_t j = 0; j < chunk; ++j) put(kernel.decay_from_start[j]);
    for (int64_t j = 0; j < chunk; ++j) put(kernel.decay_from_start[chunk - j]);
    put(std::expm1(-decay * static_cast<double>(chunk)));
    put(std::expm1(-decay * static_cast<double>(problem.tables->segment)));
  }
}

// Writes a part's coefficients for the channels [first, first + count); absent channels are 0.
template <typename compute_t>
void fill_coefficients(
    const Problem<compute_t>& problem, const ScanPart<compute_t>& part, int64_t first, int64_t count,
    int64_t lanes, compute_t* rows) {
  std::fill_n(rows, part.num_degrees() * lanes, compute_t(0));
  for (int64_t lane = 0; lane < count; ++lane) {
    const compute_t* coeffs = problem.coeffs + (first + lane) * problem.num_coeffs();
    for (int64_t k = 0; k < part.num_degrees(); ++k)
      rows[k * lanes + lane] = static_cast<compute_t>(part.coefficient(coeffs, k));
  }
}

}  // namespace hyenarec::scan
