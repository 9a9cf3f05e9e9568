// Launcher of dgrad to few channels, an image's: the last layer of a generator or a decoder, and
// the input gradient of a discriminator's or an encoder's first.
#pragma once

#include "geometry.h"

namespace genimg::cuda {

// Whether the channels of all taps fit side by side, and a block's pixels fit into one product.
bool conv_dgrad_few_serves(const ConvGeometry& geometry);

// T is __half or __nv_bfloat16; the epilogue is plain.
template <typename T>
cudaError_t launch_conv_dgrad_few(const ConvGeometry& geometry, const T* small, const T* weight,
                                  T* large, const ConvPrologue& prologue,
                                  const ConvEpilogue& epilogue, cudaStream_t stream);

}  // namespace genimg::cuda
