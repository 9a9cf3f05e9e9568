// LeakyReLU and its derivative.
#pragma once

#include "simt/simt.h"

namespace genimg::cuda {

// `value` where the gate is above 0, else slope * value. A slope of 0 is ReLU, which masks as
// torch's does: a product with 0 would make NaN of the -Inf, or of the infinite gradient, that is
// to become 0. A gate that is NaN lets the value pass there.
__device__ __forceinline__ float leaky(float gate, float value, float slope) {
  const float off = slope == 0 ? (gate <= 0 ? 0.0f : value) : value * slope;
  return gate > 0 ? value : off;
}

}  // namespace genimg::cuda
