// hyenarec._C: how this build was made, and the sizes of its Legendre scan. The operators are no part of it:
// importing it loads libhyenarec_ops.so, which it links, and that registers them with torch.
//
// CMakeLists.txt defines HYENAREC_VERSION, HYENAREC_TORCH_VERSION (torch.__version__ compiled against, as in
// "2.13.0+cpu"), HYENAREC_WITH_CUDA (0 or 1), HYENAREC_CUDA_VERSION (the toolkit's, as in "13.0", or "") and
// HYENAREC_CUDA_ARCHITECTURES.
#include <ATen/Version.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "ops/legendre_tables.h"

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

// (num_local, num_moments) of each chunk, for float32 on a CPU.
std::vector<std::pair<int64_t, int64_t>> legendre_chunk_terms(
    int64_t horizon, int64_t chunk, int64_t num_coeffs, int64_t length) {
  std::vector<std::pair<int64_t, int64_t>> terms;
  const auto tables = hyenarec::legendre_tables<float>(horizon, chunk, num_coeffs, length);
  for (int64_t i = 0; i * chunk < length; ++i)
    terms.emplace_back(tables->chunks[i].num_local, tables->chunks[i].num_moments);
  return terms;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information and sizes of HyenaRec's extension; importing it registers torch.ops.hyenarec.";
  m.attr("version") = HYENAREC_VERSION;
  m.attr("torch_version") = HYENAREC_TORCH_VERSION;
  m.attr("with_cuda") = static_cast<bool>(HYENAREC_WITH_CUDA);
  m.attr("cuda_version") = HYENAREC_CUDA_VERSION;
  m.attr("cuda_architectures") = HYENAREC_CUDA_ARCHITECTURES;
  m.attr("compiler") = compiler();
  m.attr("cxx_standard") = static_cast<long>(__cplusplus);
  m.def(
      "legendre_chunk_length", &hyenarec::legendre_chunk_length, pybind11::arg("num_coeffs"),
      "Events of a chunk of the Legendre scan, forward on a CPU and event by event anywhere.");
  m.def(
      "legendre_backward_chunk_length", &hyenarec::legendre_backward_chunk_length,
      pybind11::arg("num_coeffs"), pybind11::arg("horizon"), "The same for a backward pass on a CPU.");
  m.def(
      "legendre_chunk_terms", &legendre_chunk_terms, pybind11::arg("horizon"), pybind11::arg("chunk"),
      pybind11::arg("num_coeffs"), pybind11::arg("length"),
      "For each chunk of a history, in float32 on a CPU: how many terms its local state and its moments "
      "have.");
  m.def("cpu_capability", &at::get_cpu_capability, "The instruction set torch uses on this CPU.");
}
