// LeakyReLU over an index range. Formula, dtypes and source: genimg/ops/leaky_relu.py.
#pragma once

#include <cstdint>

#include "isa.h"

namespace genimg::cpu {

// y[i * y_stride] = x > 0 ? x : slope * x for x = x[i * x_stride], 0 <= i < n; strides in elements.
GENIMG_DECLARE_CPU_KERNEL(leaky_relu_fwd_f32, const float* x, int64_t x_stride, float* y,
                          int64_t y_stride, int64_t n, float slope)
// The same on bfloat16 bit patterns; computed in float, rounded to nearest even.
GENIMG_DECLARE_CPU_KERNEL(leaky_relu_fwd_bf16, const uint16_t* x, int64_t x_stride, uint16_t* y,
                          int64_t y_stride, int64_t n, float slope)

// grad_x = x > 0 ? grad_y : slope * grad_y.
GENIMG_DECLARE_CPU_KERNEL(leaky_relu_bwd_f32, const float* grad_y, int64_t grad_y_stride,
                          const float* x, int64_t x_stride, float* grad_x, int64_t grad_x_stride,
                          int64_t n, float slope)
GENIMG_DECLARE_CPU_KERNEL(leaky_relu_bwd_bf16, const uint16_t* grad_y, int64_t grad_y_stride,
                          const uint16_t* x, int64_t x_stride, uint16_t* grad_x,
                          int64_t grad_x_stride, int64_t n, float slope)

}  // namespace genimg::cpu
