// Launcher of fprop: conv2d's forward, conv_transpose2d's input gradient. geometry.h defines the
// terms.
#pragma once

#include "geometry.h"

namespace genimg::cuda {

// Scratch memory for the sums of an epilogue.
ConvSumsWorkspace conv_fprop_sums(const ConvGeometry& geometry);

// Computes small [batch, small_h, small_w, small_c] from large and weight.
template <typename T>
cudaError_t launch_conv_fprop(const ConvGeometry& geometry, const T* large, const T* weight,
                              T* small, const ConvPrologue& prologue, const ConvEpilogue& epilogue,
                              ConvTile tile, ConvPrecision precision, cudaStream_t stream);

}  // namespace genimg::cuda
