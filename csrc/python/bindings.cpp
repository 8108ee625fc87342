// hyenarec._C: what Python asks of the C++ code that is no operator. The operators need no Python: the
// package loads libhyenarec_ops.so, which registers them with torch, and this module links it.
#include <pybind11/pybind11.h>

#include "ops/legendre_scan/tables.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "What HyenaRec's C++ code tells Python beside its operators.";
  m.def(
      "legendre_chunk_length", &hyenarec::legendre_chunk_length, pybind11::arg("num_coeffs"),
      "Events of a chunk of the Legendre scan, on a CPU and event by event anywhere.");
}
