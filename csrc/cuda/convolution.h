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

// How float is multiplied: TF32 if torch's switch for convolutions allows it.
cuda::ConvPrecision cuda_precision();

// kHalo if GENIMG_CUDA_SM90=1 enables the kernels for Hopper. kAuto does not select them until they
// have been measured.
cuda::ConvTile cuda_tile();

// Copies by torch's own kernels; in_format() copies on the CPU.
inline at::Tensor cuda_pixels(const at::Tensor& x) {
  return x.contiguous(at::MemoryFormat::ChannelsLast);
}
at::Tensor empty_cuda_pixels(at::IntArrayRef sizes, const at::Tensor& like);

}  // namespace genimg
#endif
