// Batch norm and LeakyReLU over pieces of a tensor. Formulas: genimg/ops/batch_norm_act.py.
//
// A plane is `n` neighbouring elements of one channel (NCHW memory); pixels are `rows` rows of one
// element for each of `channels` channels (NHWC memory), in x `stride` elements apart.
#pragma once

#include <cstdint>

#include "isa.h"

namespace genimg::cpu {

// z = (x - mean) * scale + shift, y = z > 0 ? z : negative_slope * z.
struct BatchNormAct {
  float mean, scale, shift, negative_slope;
};

// With dz = grad_y * (z > 0 ? 1 : negative_slope):
// grad_x = scale * dz + (x - mean) * slope + offset, or scale * dz alone where the statistics do
// not depend on x, so that an x that is not finite does not reach the gradient.
struct BatchNormActGrad {
  BatchNormAct forward;
  float slope, offset;
  bool batch;  // statistics
};

// The same, with an array of one number per channel for each.
struct BatchNormActs {
  const float *mean, *scale, *shift;
  float negative_slope;
};

struct BatchNormActGrads {
  BatchNormActs forward;
  const float *slope, *offset;
  bool batch;
};

// T is float, or uint16_t for bfloat16 bit patterns. Sums are in double.
template <typename T>
struct BatchNormActKernels {
  // *mean, and *m2 = sum of (x - mean)^2.
  void (*plane_moments)(const T* x, int64_t n, double* mean, double* m2);
  void (*plane_fwd)(const T* x, T* y, int64_t n, BatchNormAct op);
  // *sum_dz, and *sum_dz_x = sum of dz * (x - mean).
  void (*plane_sums)(const T* grad_y, const T* x, int64_t n, BatchNormAct op, double* sum_dz,
                     double* sum_dz_x);
  void (*plane_bwd)(const T* grad_y, const T* x, T* grad_x, int64_t n, BatchNormActGrad op);

  void (*pixels_moments)(const T* x, int64_t rows, int64_t channels, int64_t stride, double* mean,
                         double* m2);
  void (*pixels_fwd)(const T* x, T* y, int64_t rows, int64_t channels, int64_t stride,
                     BatchNormActs op);
  void (*pixels_sums)(const T* grad_y, const T* x, int64_t rows, int64_t channels, int64_t stride,
                      BatchNormActs op, double* sum_dz, double* sum_dz_x);
  void (*pixels_bwd)(const T* grad_y, const T* x, T* grad_x, int64_t rows, int64_t channels,
                     int64_t stride, BatchNormActGrads op);
};

GENIMG_DECLARE_CPU_KERNEL(batch_norm_act_f32, BatchNormActKernels<float>* kernels)
GENIMG_DECLARE_CPU_KERNEL(batch_norm_act_bf16, BatchNormActKernels<uint16_t>* kernels)

}  // namespace genimg::cpu
