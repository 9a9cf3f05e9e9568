// Launcher of fprop for kernel 4, stride 2, padding 1 on Hopper: all taps from one halo.
#pragma once

#include "geometry.h"

namespace genimg::cuda {

// Whether the shape is supported, the pointers are aligned, and the device is of sm_90. `fused`:
// there is a prologue, a gate or sums.
template <typename T>
bool conv_sm90_fprop_serves(const ConvGeometry& geometry, const T* large, const T* weight,
                            const T* small, const ConvPrologue& prologue, bool fused);

// T is __half or __nv_bfloat16.
template <typename T>
cudaError_t launch_conv_sm90_fprop(const ConvGeometry& geometry, const T* large, const T* weight,
                                   T* small, const ConvPrologue& prologue,
                                   const ConvEpilogue& epilogue, bool fused, cudaStream_t stream);

}  // namespace genimg::cuda
