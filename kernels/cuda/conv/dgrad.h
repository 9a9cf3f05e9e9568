// Launcher of dgrad: conv_transpose2d's forward, conv2d's input gradient. conv.h has the words.
#pragma once

#include "geometry.h"

namespace genimg::cuda {

// For the sums of an epilogue.
ConvSumsWorkspace conv_dgrad_sums(const ConvGeometry& geometry);

// large [batch, large_h, large_w, large_c] from small and weight.
template <typename T>
cudaError_t launch_conv_dgrad(const ConvGeometry& geometry, const T* small, const T* weight,
                              T* large, const ConvPrologue& prologue, const ConvEpilogue& epilogue,
                              ConvTile tile, ConvPrecision precision, cudaStream_t stream);

}  // namespace genimg::cuda
