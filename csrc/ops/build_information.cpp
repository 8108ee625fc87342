// torch.ops.hyenarec.build_information(): how this library was made, so that whoever loads it can tell what
// it fits.
//
// CMakeLists.txt defines HYENAREC_VERSION, HYENAREC_TORCH_VERSION (torch.__version__ compiled against, as in
// "2.13.0+cpu"), HYENAREC_CUDA_VERSION (the toolkit's, as in "13.0"; "" without CUDA) and
// HYENAREC_CUDA_ARCHITECTURES (as in "80-real 90": machine code for 8.0, machine code and PTX for 9.0).
#include <ATen/core/Dict.h>
#include <torch/library.h>

#include <string>

namespace hyenarec {
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

c10::Dict<std::string, std::string> build_information() {
  c10::Dict<std::string, std::string> facts;
  facts.insert("version", HYENAREC_VERSION);
  facts.insert("torch_version", HYENAREC_TORCH_VERSION);
  facts.insert("cuda_version", HYENAREC_CUDA_VERSION);
  facts.insert("cuda_architectures", HYENAREC_CUDA_ARCHITECTURES);
  facts.insert("compiler", compiler());
  return facts;
}

}  // namespace
}  // namespace hyenarec

// The namespace `hyenarec` of torch's dispatcher. Each operator's schema stands in its own folder.
TORCH_LIBRARY(hyenarec, m) { m.def("build_information", hyenarec::build_information); }
