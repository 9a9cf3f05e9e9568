// Launcher of what a stack's norms are to the contractions, where no statistics are taken.
#pragma once

#include "geometry.h"

namespace genimg::cuda {

// z = (y - mean) * scale + shift, with scale = gamma * rstd and shift = beta; null gamma and beta
// stand for 1 and 0. With running statistics mean and rstd are written, else they are read.
struct ConvStackNorm {
  int channels;
  float eps;
  const float *running_mean, *running_var, *gamma, *beta;
  float *mean, *rstd, *scale, *shift;
};

cudaError_t launch_conv_stack_norm(const ConvStackNorm* norms, int count, cudaStream_t stream);

}  // namespace genimg::cuda
