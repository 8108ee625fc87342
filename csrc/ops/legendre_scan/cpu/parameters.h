// A call's parameters as its tasks use them: for each vector of channels the kernel at the first lags, the
// decay's powers, and the tables contracted with the coefficients.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "segment_tables.h"
#include "tasks.h"

namespace hyenarec::scan {

// A call's parameters: coeffs [D, N], decay [D], skip [D] or nullptr.
template <typename compute_t>
struct ScanArguments {
  int64_t channels, num_coeffs;
  const compute_t *coeffs, *decay, *skip;
  int64_t horizon;
};

// A channel's kernel at the first lags in double, as a polynomial and the decay that multiplies it.
struct NearKernel {
  double polynomial[kMaxChunk] = {};
  double decay_from_start[kMaxChunk + 1];

  template <typename compute_t>
  NearKernel(
      const SegmentTables<compute_t>& tables, const ScanArguments<compute_t>& arguments, int64_t channel) {
    const int64_t chunk = tables.chunk, n = tables.num_coeffs;
    for (int64_t k = 0; k < n; ++k) {
      const double coefficient = arguments.coeffs[channel * n + k];
      for (int64_t lag = 0; lag < chunk; ++lag)
        polynomial[lag] += coefficient * tables.basis[k * chunk + lag];
    }
    const double one_step = std::exp(-static_cast<double>(arguments.decay[channel]));
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
  int64_t first_sum;          // where the gradients of its coefficients begin, see GradientLayout
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
      : whole{&tables.whole.tables, &tables.whole.restriction, 0, {}},
        cut{&tables.cut.tables, &tables.cut.restriction, whole.num_degrees(), {}},
        between{&tables.between, nullptr, cut.first_sum + cut.num_degrees(), {}} {
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

// Rows of a ScanParameters before its contractions.
inline int64_t plain_parameter_rows(int64_t chunk) { return 3 * chunk + 2; }

// What a vector of channels needs at every event: rows of lanes.
template <typename V>
struct ScanParameters {
  const V* near;  // [C] the kernel at the first lags, skip added to lag 0
  int64_t chunk;

  // Behind it: [C] exp(-decay j), [C] exp(-decay (C - j)), [1] expm1(-decay C), [1] expm1(-decay S), and what
  // Contractions says.
  HYENAREC_INLINE const V* decay_from_start() const { return near + chunk; }
  HYENAREC_INLINE const V* decay_to_end() const { return near + 2 * chunk; }
  HYENAREC_INLINE const V& chunk_decay_change() const { return near[3 * chunk]; }
  HYENAREC_INLINE const V& segment_decay_change() const { return near[3 * chunk + 1]; }
  HYENAREC_INLINE const V* contracted() const { return near + plain_parameter_rows(chunk); }
};

// Writes those rows for the channels [first, first + count); absent channels are 0.
template <typename compute_t>
void fill_plain_parameters(
    const SegmentTables<compute_t>& tables, const ScanArguments<compute_t>& arguments, int64_t first,
    int64_t count, int64_t lanes, compute_t* rows) {
  const int64_t chunk = tables.chunk;
  std::fill_n(rows, plain_parameter_rows(chunk) * lanes, compute_t(0));
  for (int64_t lane = 0; lane < count; ++lane) {
    const NearKernel kernel(tables, arguments, first + lane);
    compute_t* to = rows + lane;
    // Numbers far below rounding become zero: denormal ones, in which fast decays end, would take the
    // processor ten times as long.
    constexpr double kSmallest =
        std::numeric_limits<compute_t>::min() / std::numeric_limits<compute_t>::epsilon();
    const auto put = [&](double value) {
      *to = std::abs(value) < kSmallest ? compute_t(0) : static_cast<compute_t>(value);
      to += lanes;
    };
    const double skip = arguments.skip ? arguments.skip[first + lane] : 0.0;
    const double decay = arguments.decay[first + lane];
    put(kernel.polynomial[0] + skip);
    for (int64_t lag = 1; lag < chunk; ++lag) put(kernel.polynomial[lag] * kernel.decay_from_start[lag]);
    for (int64_t j = 0; j < chunk; ++j) put(kernel.decay_from_start[j]);
    for (int64_t j = 0; j < chunk; ++j) put(kernel.decay_from_start[chunk - j]);
    put(std::expm1(-decay * static_cast<double>(chunk)));
    put(std::expm1(-decay * static_cast<double>(tables.segment)));
  }
}

// Writes a part's coefficients for the channels [first, first + count); absent channels are 0.
template <typename compute_t>
void fill_coefficients(
    const ScanArguments<compute_t>& arguments, const ScanPart<compute_t>& part, int64_t first, int64_t count,
    int64_t lanes, compute_t* rows) {
  std::fill_n(rows, part.num_degrees() * lanes, compute_t(0));
  for (int64_t lane = 0; lane < count; ++lane) {
    const compute_t* coeffs = arguments.coeffs + (first + lane) * arguments.num_coeffs;
    for (int64_t k = 0; k < part.num_degrees(); ++k)
      rows[k * lanes + lane] = static_cast<compute_t>(part.coefficient(coeffs, k));
  }
}

}  // namespace hyenarec::scan
