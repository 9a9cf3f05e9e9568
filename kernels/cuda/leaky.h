// LeakyReLU and its derivative.
#pragma once

#include "simt/simt.h"

namespace genimg::cuda {

// `value` where the gate is above 0, else slope * value. A slope of 0 is ReLU, which masks as
// torch's does: multiplying -Inf or an infinite gradient by 0 would give NaN instead of 0. With
// slope 0, a NaN gate lets the value pass.
__device__ __forceinline__ float leaky(float gate, float value, float slope) {
  const float off = slope == 0 ? (gate <= 0 ? 0.0f : value) : value * slope;
  return gate > 0 ? value : off;
}

}  // namespace genimg::cuda
