// hyenarec._C: what Python asks of the C++ code that is no operator, so far the sizes of the Legendre scan. The operators
// need no Python: the package loads libhyenarec_ops.so, which registers them with torch, and this module links it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "../ops/legendre_scan/cpu/segment_tables.h"

namespace {

// What one step of the scan computes with; `transfer` and `contract` are multiply-adds.
pybind11::dict step_terms(const hyenarec::LegendreTables<float>& tables, int64_t index) {
  const auto& chunk = tables.chunks[index];
  int64_t transfer = 0, contract = 0;
  for (int64_t q = 0; q < chunk.num_moments; ++q) {
    for (int64_t p = 0; p < std::min(chunk.num_next, tables.num_degrees - q); ++p) {
      transfer += 1;
      contract += tables.num_degrees - q - p;
    }
  }
  pybind11::dict terms;
  terms["state"] = chunk.num_state;
  terms["local"] = chunk.num_local;
  terms["moments"] = chunk.num_moments;
  terms["next"] = chunk.num_next;
  terms["transfer"] = transfer;
  terms["contract"] = contract;
  return terms;
}

pybind11::dict legendre_scan_terms(int64_t horizon, int64_t num_coeffs, int64_t length) {
  const auto tables = hyenarec::section_tables<float>(
      horizon, hyenarec::legendre_chunk_length(num_coeffs), num_coeffs, length);
  const auto all = [](const hyenarec::LegendreTables<float>& part) {
    pybind11::list terms;
    for (size_t i = 0; i < part.chunks.size(); ++i) terms.append(step_terms(part, static_cast<int64_t>(i)));
    return terms;
  };
  pybind11::list gathered;
  for (const auto& gather : tables->gather) gathered.append(gather.num_moments);
  pybind11::dict terms;
  terms["section"] = tables->section;
  terms["whole"] = all(tables->whole.tables);
  terms["cut"] = all(tables->cut.tables);
  terms["between"] = all(tables->between);
  terms["gathered"] = gathered;
  return terms;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Sizes of HyenaRec's Legendre scan.";
  m.def(
      "legendre_chunk_length", &hyenarec::legendre_chunk_length, pybind11::arg("num_coeffs"),
      "Events of a chunk of the Legendre scan, on a CPU and event by event anywhere.");
  m.def(
      "legendre_scan_terms", &legendre_scan_terms, pybind11::arg("horizon"), pybind11::arg("num_coeffs"),
      pybind11::arg("length"),
      "The sizes of the scan of a history, in float32 on a CPU, as csrc/ops/cpu/section_tables.h describes "
      "it: "
      "events "
      "of a section; for each chunk of a whole and of a cut section, and from section to section, the terms "
      "of its "
      "state, local state, moments and next state, and the multiply-adds of its transfer and of its "
      "contraction; "
      "and the moments of each chunk that its section gathers.");
}
