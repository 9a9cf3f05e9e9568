// Matrices of images between the memory formats: [channels][pixels] to [pixels][channels] and back.
#pragma once

#include <cstdint>

#include "isa.h"

namespace genimg::cpu {

// Columns of a matrix in one piece of work.
constexpr int64_t kTransposeColumns = 64;

// `from` is [matrices][rows][columns], `to` [matrices][columns][rows]; pieces [begin, end), of
// which a matrix has columns / kTransposeColumns, rounded up.
GENIMG_DECLARE_CPU_KERNEL(transpose_f32, const float* from, float* to, int64_t rows,
                          int64_t columns, int64_t begin, int64_t end)
GENIMG_DECLARE_CPU_KERNEL(transpose_bf16, const uint16_t* from, uint16_t* to, int64_t rows,
                          int64_t columns, int64_t begin, int64_t end)

}  // namespace genimg::cpu
