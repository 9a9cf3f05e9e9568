// Launchers of what stands behind the last block's convolution. conv.h has the words.
#pragma once

#include "geometry.h"

namespace genimg::cuda {

// What images of NHWC memory have.
struct ConvStackEnd {
  int64_t pixels, channels;
  ConvNorm norm;          // of raw; without a mean there is none
  float negative_slope;   // behind the norm; 1 without an activation
  Activation activation;  // kTanh, kSigmoid, or kNone for what the slope says
};

// y = activation(leaky((raw - mean) * scale + shift)), behind a norm.
template <typename T>
cudaError_t launch_conv_stack_end_fwd(const ConvStackEnd& end, const T* raw, T* y,
                                      cudaStream_t stream);

// Floats of scratch, and tickets, 0 before and after.
ConvSumsWorkspace conv_stack_end_sums(const ConvStackEnd& end);

// dz, the gradient behind the norm, or behind the convolution where there is none; and what is made
// of its sums. y, the output, is read for tanh and sigmoid.
template <typename T>
cudaError_t launch_conv_stack_end_bwd(const ConvStackEnd& end, const T* grad_y, const T* y,
                                      const T* raw, T* dz, const ConvNormGrads& grads,
                                      float* scratch, unsigned* tickets, cudaStream_t stream);

}  // namespace genimg::cuda
