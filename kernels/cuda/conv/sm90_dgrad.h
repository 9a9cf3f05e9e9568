// Launcher of dgrad for kernel 4, stride 2, padding 1 on Hopper: all four phases in one block.
#pragma once

#include "geometry.h"

namespace genimg::cuda {

// Whether the shape is supported, the pointers are aligned, and the device is of sm_90. `fused`:
// there is a prologue, a gate or sums.
template <typename T>
bool conv_sm90_dgrad_serves(const ConvGeometry& geometry, const T* small, const T* weight,
                            const T* large, const ConvPrologue& prologue, bool fused);

// T is __half or __nv_bfloat16.
template <typename T>
cudaError_t launch_conv_sm90_dgrad(const ConvGeometry& geometry, const T* small, const T* weight,
                                   T* large, const ConvPrologue& prologue,
                                   const ConvEpilogue& epilogue, bool fused, cudaStream_t stream);

}  // namespace genimg::cuda
