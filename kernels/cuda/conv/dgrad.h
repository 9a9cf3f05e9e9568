// Launcher of dgrad: conv_transpose2d's forward, conv2d's input gradient. geometry.h defines the
// terms.
#pragma once

#include "geometry.h"

namespace genimg::cuda {

// Scratch memory for the sums of an epilogue.
ConvSumsWorkspace conv_dgrad_sums(const ConvGeometry& geometry);

// Computes large [batch, large_h, large_w, large_c] from small and weight.
template <typename T>
cudaError_t launch_conv_dgrad(const ConvGeometry& geometry, const T* small, const T* weight,
                              T* large, const ConvPrologue& prologue, const ConvEpilogue& epilogue,
                              ConvTile tile, ConvPrecision precision, cudaStream_t stream);

}  // namespace genimg::cuda
