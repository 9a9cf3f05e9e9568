// Launchers of the last block's norm and activation.
#pragma once

#include "geometry.h"

namespace genimg::cuda {

// The sizes, norm and activation of images in NHWC memory.
struct ConvStackEnd {
  int64_t pixels, channels;
  ConvNorm norm;          // applied to raw; there is none without a mean
  float negative_slope;   // behind the norm; 1 without an activation
  Activation activation;  // kTanh, kSigmoid, or kNone: the slope describes it
};

// y = activation(leaky((raw - mean) * scale + shift)), behind a norm.
template <typename T>
cudaError_t launch_conv_stack_end_fwd(const ConvStackEnd& end, const T* raw, T* y,
                                      cudaStream_t stream);

// The workspace of launch_conv_stack_end_bwd; its tickets are 0 before and after.
ConvSumsWorkspace conv_stack_end_sums(const ConvStackEnd& end);

// dz, the gradient behind the norm, or behind the convolution where there is none; and the outputs
// that are computed from its sums. y, the output, is read for tanh and sigmoid.
template <typename T>
cudaError_t launch_conv_stack_end_bwd(const ConvStackEnd& end, const T* grad_y, const T* y,
                                      const T* raw, T* dz, const ConvNormGrads& grads,
                                      float* scratch, unsigned* tickets, cudaStream_t stream);

}  // namespace genimg::cuda
