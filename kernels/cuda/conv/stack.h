// A run of convolution blocks as a sequence of launches. What they compute:
// genimg/ops/conv_stack.py.
//
// Forward: a contraction a block, which reads through the norm and activation of the block before
// it, and takes the statistics of what it writes. Backward: a block's weight gradient and input
// gradient, which goes through the activation of the block before it, takes the sums that the norm
// needs, and is taken through the norm where the next two read it.
#pragma once

#include "geometry.h"

namespace genimg::cuda {

// Images are dense NHWC of T, channels' arrays are floats. Null: what a block has not, or what is
// not wanted of it.
struct ConvStackBlock {
  bool transposed;
  ConvGeometry geometry;
  NormKind norm;
  Activation activation;
  float eps, negative_slope;
  const void* weight;  // [small_c, kernel_h, kernel_w, large_c]
  const float *bias, *gamma, *beta, *running_mean, *running_var;

  // BlockOutput by a forward, read by a backward: the output before the norm (without one, what the
  // next block reads), its mean and 1 / sqrt(variance + eps); and the unbiased variance, for the
  // running statistics.
  void* raw;
  float *mean, *rstd, *var;

  // BlockOutput by a backward; the weight's as launch_conv_wgrad has it.
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

// Memory for the time of the launches; the tickets are 0 before and after.
struct ConvStackWorkspace {
  int64_t bytes, tickets;
};

template <typename T>
ConvStackWorkspace conv_stack_fwd_workspace(const ConvStack& stack);

template <typename T>
cudaError_t launch_conv_stack_fwd(const ConvStack& stack, const T* x, T* y, void* room,
                                  unsigned* tickets, cudaStream_t stream);

// The lowest block that a gradient is wanted of; count if there is none.
int conv_stack_lowest(const ConvStack& stack, bool needs_x);

template <typename T>
ConvStackWorkspace conv_stack_bwd_workspace(const ConvStack& stack, bool needs_x);

// y is read where the last block's activation is tanh or sigmoid, or has no norm before it; grad_x
// may be null.
template <typename T>
cudaError_t launch_conv_stack_bwd(const ConvStack& stack, const T* grad_y, const T* x, const T* y,
                                  T* grad_x, void* room, unsigned* tickets, cudaStream_t stream);

}  // namespace genimg::cuda
