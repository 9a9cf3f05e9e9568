// A run of convolution blocks as a sequence of launches. Formulas: genimg/ops/conv_stack.py.
//
// Forward, per block: a contraction, which applies the norm and activation of the block before it
// as it reads, and takes the statistics of its result. Backward, per block: the weight's gradient,
// and the input's gradient, which passes the activation of the block before it and takes the sums
// that this block's norm needs; the next two contractions take it through that norm as they read.
#pragma once

#include "geometry.h"

namespace genimg::cuda {

// Images are dense NHWC of T, arrays have one float per channel. Null: the block has no such
// parameter, or the result is not needed.
struct ConvStackBlock {
  bool transposed;
  ConvGeometry geometry;
  NormMode norm;
  Activation activation;
  float eps, negative_slope;
  const void* weight;  // [small_c, kernel_h, kernel_w, large_c]
  const float *bias, *gamma, *beta, *running_mean, *running_var;

  // Written by a forward, read by a backward: the output before the norm (without one, the image
  // that the next block reads), its mean and rstd = 1 / sqrt(variance + eps). Written by a forward
  // alone: the variance, unbiased if it is the batch's, else a copy of the running one.
  void* raw;
  float *mean, *rstd, *var;

  // Written by a backward; by_channel is an argument of launch_conv_wgrad.
  void* grad_weight;
  bool by_channel;
  float *grad_bias, *grad_gamma, *grad_beta;
};

struct ConvStack {
  const ConvStackBlock* blocks;
  int count;
  ConvPrecision precision;
  ConvTile tile;
};

// Sizes of the memory that the launches use; the tickets are 0 before and after.
struct ConvStackWorkspace {
  int64_t bytes, tickets;
};

template <typename T>
ConvStackWorkspace conv_stack_fwd_workspace(const ConvStack& stack);

template <typename T>
cudaError_t launch_conv_stack_fwd(const ConvStack& stack, const T* x, T* y, void* room,
                                  unsigned* tickets, cudaStream_t stream);

// The lowest block of which a gradient is needed; count if there is none.
int conv_stack_lowest(const ConvStack& stack, bool needs_x);

template <typename T>
ConvStackWorkspace conv_stack_bwd_workspace(const ConvStack& stack, bool needs_x);

// y is read where the last block's activation is tanh or sigmoid, or has no norm before it; grad_x
// may be null.
template <typename T>
cudaError_t launch_conv_stack_bwd(const ConvStack& stack, const T* grad_y, const T* x, const T* y,
                                  T* grad_x, void* room, unsigned* tickets, cudaStream_t stream);

}  // namespace genimg::cuda
