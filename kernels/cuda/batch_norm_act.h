// Launchers of batch norm and LeakyReLU. Formulas: genimg/ops/batch_norm_act.py.
#pragma once

#include <cstdint>

#include "simt/types.h"

namespace genimg::cuda {

// The layout of x: pixels of all channels (NHWC), `pixel_stride` apart, or planes of one channel
// (NCHW). grad_y, y and grad_x are dense, in x's order. `plane` is H * W.
struct BatchNormActShape {
  bool pixels;
  int64_t batch, channels, plane;
  int64_t batch_stride, channel_stride;  // of planes
  int64_t pixel_stride;                  // of pixels
};

// Limits of the launchers; larger tensors would overflow their indices.
constexpr int64_t kBatchNormActMaxValues = int64_t{1} << 31;  // per channel, exclusive
constexpr int64_t kBatchNormActMaxChannels = int64_t{1} << 24;

// Floats of scratch memory that _stats and _sums need. They also need one ticket (a counter of
// blocks) per channel, 0 before and after.
int64_t batch_norm_act_scratch(const BatchNormActShape& shape);

// Arrays per channel are float; T is float, __half or __nv_bfloat16. weight and bias may be null.

// Mean, rstd and unbiased variance of the batch.
template <typename T>
cudaError_t launch_batch_norm_act_stats(const T* x, const BatchNormActShape& shape, float eps,
                                        float* scratch, unsigned* tickets, float* mean, float* rstd,
                                        float* var, cudaStream_t stream);

// Mean and rstd of the running statistics.
cudaError_t launch_batch_norm_act_running(const float* running_mean, const float* running_var,
                                          int64_t channels, float eps, float* mean, float* rstd,
                                          cudaStream_t stream);

template <typename T>
cudaError_t launch_batch_norm_act_fwd(const T* x, T* y, const BatchNormActShape& shape,
                                      const float* weight, const float* bias, const float* mean,
                                      const float* rstd, float negative_slope, cudaStream_t stream);

// The gradients of weight and bias.
template <typename T>
cudaError_t launch_batch_norm_act_sums(const T* grad_y, const T* x, const BatchNormActShape& shape,
                                       const float* weight, const float* bias, const float* mean,
                                       const float* rstd, float negative_slope, float* scratch,
                                       unsigned* tickets, float* grad_weight, float* grad_bias,
                                       cudaStream_t stream);

// The gradient of x from those of weight and bias, which are null where mean and rstd do not depend
// on x.
template <typename T>
cudaError_t launch_batch_norm_act_bwd(const T* grad_y, const T* x, T* grad_x,
                                      const BatchNormActShape& shape, const float* weight,
                                      const float* bias, const float* mean, const float* rstd,
                                      const float* grad_weight, const float* grad_bias,
                                      float negative_slope, cudaStream_t stream);

}  // namespace genimg::cuda
