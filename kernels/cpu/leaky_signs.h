// One bit a value: all that the gradient of a LeakyReLU needs of its output.
#pragma once

#include <cstdint>

#include "isa.h"

namespace genimg::cpu {

// Bit j of byte k of a group stands for its value 16 j + k, so that whole vectors are packed and
// read at once.
constexpr int64_t kSignGroup = 128, kSignBytes = 16;

// Packs the signs of n values y of groups [begin, end): 1 where the gradient passes unchanged,
// which with slope 0 includes NaN.
GENIMG_DECLARE_CPU_KERNEL(leaky_signs_f32, const float* y, int64_t n, float negative_slope,
                          uint8_t* signs, int64_t begin, int64_t end)
GENIMG_DECLARE_CPU_KERNEL(leaky_signs_bf16, const uint16_t* y, int64_t n, float negative_slope,
                          uint8_t* signs, int64_t begin, int64_t end)

// grad_x = grad_y where the bit is set, else negative_slope * grad_y, or 0 if that slope is 0.
GENIMG_DECLARE_CPU_KERNEL(leaky_signs_bwd_f32, const float* grad_y, const uint8_t* signs, int64_t n,
                          float negative_slope, float* grad_x, int64_t begin, int64_t end)
GENIMG_DECLARE_CPU_KERNEL(leaky_signs_bwd_bf16, const uint16_t* grad_y, const uint8_t* signs,
                          int64_t n, float negative_slope, uint16_t* grad_x, int64_t begin,
                          int64_t end)

}  // namespace genimg::cpu
