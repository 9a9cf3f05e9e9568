// The importable module. The ops themselves go through TORCH_LIBRARY: each file registers its own.
#include <pybind11/pybind11.h>
#include <torch/library.h>

#include <exception>

#include "../kernels/cpu/isa.h"
#include "build_record.h"

namespace py = pybind11;

namespace genimg {
namespace {

py::dict build_info() {
  py::dict info = py::module_::import("json").attr("loads")(kBuildRecord);
  try {
    info["isa"] = cpu::isa_name(cpu::active_isa());
  } catch (const std::exception& error) {  // GENIMG_CPU_ISA names a level that is not available
    info["isa"] = error.what();
  }
#ifdef _OPENMP
  info["threads"] = true;
#else
  info["threads"] = false;
#endif
  return info;
}

}  // namespace

// Claims the namespace, so that torch refuses a second library of this name. The ops are fragments.
TORCH_LIBRARY(genimg, /*library*/) {}

}  // namespace genimg

PYBIND11_MODULE(_C, m) {
  m.doc() = "genimg's kernels for the CPU and for CUDA; the ops are in torch.ops.genimg.";
  m.def(
      "build_info", &genimg::build_info,
      "What was built, with what and why (genimg/_build.json), the instruction-set level that the "
      "CPU kernels run at, and whether they use torch's threads.");
}
