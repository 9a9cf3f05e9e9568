// The importable module genimg._C: build_info() alone. The ops register themselves with torch when
// the library is loaded, each in its own file.
#include <pybind11/pybind11.h>
#include <torch/library.h>
#include <torch/version.h>

#include <exception>

#include "../kernels/cpu/isa.h"

TORCH_LIBRARY(genimg, m) { m.set_python_module("genimg._native"); }

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = GENIMG_COMPILER;
  info["debug"] =
#ifdef NDEBUG
      false;
#else
      true;
#endif
  pybind11::list levels;
  levels.append("baseline");
#ifdef GENIMG_X86_LEVELS
  levels.append("avx2");
  levels.append("avx512");
#endif
  info["isas"] = levels;
  try {
    info["isa"] = genimg::cpu::isa_name(genimg::cpu::active_isa());
  } catch (const std::exception& error) {
    info["isa"] = error.what();
  }
#ifdef GENIMG_WITH_CUDA
  info["cuda"] = GENIMG_CUDA_VERSION;
  info["cuda_archs"] = GENIMG_CUDA_ARCHS;
#else
  info["cuda"] = pybind11::none();
  info["cuda_archs"] = "";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of genimg; their ops are under torch.ops.genimg.";
  m.def("build_info", &build_info, "What this module was built from and for.");
}
