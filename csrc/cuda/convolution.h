// Shared by the bindings of the CUDA convolutions.
#pragma once

#ifdef GENIMG_WITH_CUDA
#include <ATen/core/Tensor.h>

#include <optional>

#include "../../kernels/cpu/conv/geometry.h"
#include "../../kernels/cuda/conv/geometry.h"

namespace genimg {

// The geometry in the kernels' narrower numbers.
cuda::ConvGeometry cuda_geometry(const char* op, const cpu::ConvGeometry& geometry,
                                 at::IntArrayRef stride);

// TF32 or float for float, as torch's switches for convolutions say.
cuda::ConvPrecision cuda_precision();

// kHalo if GENIMG_CUDA_SM90=1 asks for the kernels for Hopper: kAuto does not take them before they
// were measured.
cuda::ConvTile cuda_tile();

// torch's own copies: in_format's are the CPU's.
inline at::Tensor cuda_pixels(const at::Tensor& x) {
  return x.contiguous(at::MemoryFormat::ChannelsLast);
}
at::Tensor empty_cuda_pixels(at::IntArrayRef sizes, const at::Tensor& like);

}  // namespace genimg
#endif
