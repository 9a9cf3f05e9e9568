// Launcher that computes the scales and shifts by which the contractions apply a stack's norms,
// where these do not take the batch's statistics in the same pass.
#pragma once

#include "geometry.h"

namespace genimg::cuda {

// z = (y - mean) * scale + shift, with scale = gamma * rstd and shift = beta; null gamma and beta
// stand for 1 and 0. With running statistics mean, rstd and var, a copy of the running variance,
// are written; else mean and rstd are read.
struct ConvStackNorm {
  int channels;
  float eps;
  const float *running_mean, *running_var, *gamma, *beta;
  float *mean, *rstd, *var, *scale, *shift;
};

cudaError_t launch_conv_stack_norm(const ConvStackNorm* norms, int count, cudaStream_t stream);

}  // namespace genimg::cuda
