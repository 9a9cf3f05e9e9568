// Launcher of wgrad, the weight's gradient of both convolutions. geometry.h defines the terms.
#pragma once

#include "geometry.h"

namespace genimg::cuda {

// Floats of scratch memory: a sum of the whole weight for each piece of the pixels.
template <typename T>
int64_t conv_wgrad_scratch(const ConvGeometry& geometry);

// Computes grad_weight from the images: [small_c, kernel_h, kernel_w, large_c], or with
// `by_channel` [small_c, large_c, kernel_h, kernel_w].
template <typename T>
cudaError_t launch_conv_wgrad(const ConvGeometry& geometry, const T* small, const T* large,
                              float* scratch, T* grad_weight, bool by_channel,
                              ConvPrecision precision, const ConvPrologue& small_prologue,
                              const ConvPrologue& large_prologue, cudaStream_t stream);

}  // namespace genimg::cuda
