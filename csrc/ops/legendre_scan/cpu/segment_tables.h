// Constants of the Legendre scan on the CPU, which walks time at two speeds. See ../legendre_tables.h for the
// scan itself. No torch here.
//
// With chunks alone a long horizon has hundreds of different tables, each to be contracted with every call's
// coefficients. So time is cut into sections of S events, and these into chunks:
//
//   within   Inside a section the kernel's first S lags are all that counts: they are a kernel with the horizon
//            S, its polynomial restricted, and all sections share one scan's tables.
//   between  What sections hand on is a state on the whole horizon, a scan with sections for its chunks. A
//            section begins with its part of it, the state restricted to the section; it ends with its moments,
//            gathered from its chunks'.
//
// Then the contractions are S / C + T / S instead of T / C, and so many chunks and sections add to a state. Besides, a
// state is what kernels make of it: where R events of the horizon are left, it consists of windows of R lags, whose
// coefficients fade with the degree the faster the shorter R is beside T. What fades below rounding is dropped (in
// float32, of 17 coefficients 9 are left for T = 16,384 and R = 512).
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "../tables.h"

namespace hyenarec {

// Chunks of a section: about as many as there are sections, but not so few that these cost more than they save.
constexpr int64_t kLeastSectionChunks = 16;
inline int64_t section_chunks(int64_t horizon, int64_t chunk) {
  int64_t count = kLeastSectionChunks;
  while (count * count * chunk < horizon) count *= 2;
  return count;
}

// Events of a section.
inline int64_t section_length(int64_t horizon, int64_t chunk) {
  return std::min(horizon, section_chunks(horizon, chunk) * chunk);
}

// The scan within a section.
template <typename scalar_t>
struct WithinSection {
  // The section is the horizon; its chunk 0 may have a state to begin with. num_degrees: what is left of the
  // kernel.
  LegendreTables<scalar_t> tables;
  // restriction [num_degrees, N]: the kernel's coefficients on the section's lags from those on all lags.
  std::vector<double> restriction;
};

// A chunk's moments as its section's: P_q on the section = sum_k matrix[k][q] P_k on the chunk, k <= q < N.
template <typename scalar_t>
struct Gather {
  int64_t num_moments;              // of the chunk
  std::vector<scalar_t> matrix;     // [num_moments, N]
  std::vector<scalar_t> by_column;  // [N, num_moments]
};

template <typename scalar_t>
struct SectionTables {
  int64_t horizon;
  int64_t chunk;
  int64_t num_coeffs;
  int64_t section;            // S: section_length()
  std::vector<double> basis;  // [N, C]: P_n at the first C lags of the horizon

  WithinSection<scalar_t> whole;         // a section of S events
  WithinSection<scalar_t> cut;           // the horizon's last one, if shorter
  LegendreTables<scalar_t> between;      // sections as chunks, without a basis; a cut section has no local
  std::vector<Gather<scalar_t>> gather;  // [chunk], for sections that have a successor

  int64_t reach() const { return between.reach(); }
  bool is_cut(int64_t index) const { return (index + 1) * section > horizon; }
};

// The tables for histories of up to `length` events, 0 <= length <= horizon. Built in double once and kept; from
// any thread.
template <typename scalar_t>
std::shared_ptr<const SectionTables<scalar_t>> section_tables(
    int64_t horizon, int64_t chunk, int64_t num_coeffs, int64_t length);

}  // namespace hyenarec
