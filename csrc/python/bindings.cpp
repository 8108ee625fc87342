// hyenarec._C: how this build was made. The operators are no part of it: importing it loads
// libhyenarec_ops.so, which it links, and that registers them with torch.
//
// CMakeLists.txt defines HYENAREC_VERSION, HYENAREC_TORCH_VERSION (torch.__version__ compiled against, as in
// "2.13.0+cpu"), HYENAREC_WITH_CUDA (0 or 1), HYENAREC_CUDA_VERSION (the toolkit's, as in "13.0", or "") and
// HYENAREC_CUDA_ARCHITECTURES.
#include <ATen/Version.h>
#include <pybind11/pybind11.h>

#include <string>

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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information of HyenaRec's extension; importing it registers torch.ops.hyenarec.";
  m.attr("version") = HYENAREC_VERSION;
  m.attr("torch_version") = HYENAREC_TORCH_VERSION;
  m.attr("with_cuda") = static_cast<bool>(HYENAREC_WITH_CUDA);
  m.attr("cuda_version") = HYENAREC_CUDA_VERSION;
  m.attr("cuda_architectures") = HYENAREC_CUDA_ARCHITECTURES;
  m.attr("compiler") = compiler();
  m.attr("cxx_standard") = static_cast<long>(__cplusplus);
  m.def("cpu_capability", &at::get_cpu_capability, "The instruction set torch uses on this CPU.");
}
