// dgrad: from the small image to the large one; see geometry.h.
#pragma once

#include "geometry.h"

namespace genimg::cpu {

GENIMG_DECLARE_CPU_KERNEL(conv_dgrad_f32, const ConvCall& call, float* scratch, int64_t begin,
                          int64_t end)
GENIMG_DECLARE_CPU_KERNEL(conv_dgrad_bf16, const ConvCall& call, float* scratch, int64_t begin,
                          int64_t end)

}  // namespace genimg::cpu
