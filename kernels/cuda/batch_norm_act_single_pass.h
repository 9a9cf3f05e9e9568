// Launchers of batch norm and LeakyReLU where all values of a block's channels fit into its shared
// memory: one kernel a pass, which reads the tensor once. Formulas: genimg/ops/batch_norm_act.py;
// shapes and arrays: batch_norm_act.h.
#pragma once

#include "batch_norm_act.h"

namespace genimg::cuda {

// Whether the channels fit, and are enough to occupy a GPU. grad_y is null in a forward.
template <typename T>
bool batch_norm_act_single_pass_serves(const BatchNormActShape& shape, const T* x, const T* grad_y,
                                       const T* out);

// y and the batch's mean, rstd and unbiased variance.
template <typename T>
cudaError_t launch_batch_norm_act_single_pass_fwd(const T* x, T* y, const BatchNormActShape& shape,
                                                  const float* weight, const float* bias, float eps,
                                                  float negative_slope, float* mean, float* rstd,
                                                  float* var, cudaStream_t stream);

// The gradients of x, weight and bias; mean and rstd are x's own.
template <typename T>
cudaError_t launch_batch_norm_act_single_pass_bwd(const T* grad_y, const T* x, T* grad_x,
                                                  const BatchNormActShape& shape,
                                                  const float* weight, const float* bias,
                                                  const float* mean, const float* rstd,
                                                  float negative_slope, float* grad_weight,
                                                  float* grad_bias, cudaStream_t stream);

}  // namespace genimg::cuda
