// Plans of dgrad and fprop, and their packed weights.
#pragma once

#include "geometry.h"

namespace genimg::cpu {

// `plain`: the epilogue is plain and takes no moments.
GENIMG_DECLARE_CPU_KERNEL(conv_plan, const ConvGeometry& geometry, ConvDirection direction,
                          bool plain, ConvPlan* plan)
// Packs items [begin, end); sets *refused as ConvCall::refused.
GENIMG_DECLARE_CPU_KERNEL(conv_pack_f32, const ConvGeometry& geometry, ConvDirection direction,
                          ConvAlgorithm form, WeightOrder order, const float* weight, float* packed,
                          int* refused, int64_t begin, int64_t end)
GENIMG_DECLARE_CPU_KERNEL(conv_pack_bf16, const ConvGeometry& geometry, ConvDirection direction,
                          ConvAlgorithm form, WeightOrder order, const uint16_t* weight,
                          float* packed, int* refused, int64_t begin, int64_t end)

}  // namespace genimg::cpu
