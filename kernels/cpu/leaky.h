// LeakyReLU and its derivative: `value` where the gate is above 0, else slope * value.
//
// A slope of 0 is ReLU, which masks as torch's does: multiplying -Inf or an infinite gradient by 0
// would give NaN instead of 0. With slope 0, a NaN gate lets the value pass.
#pragma once

#include "vector.h"

namespace genimg::cpu::GENIMG_ISA {

// The branch is the same for a whole call.
struct Leaky {
  explicit Leaky(float negative_slope)
      : slopes(broadcast(negative_slope)), slope(negative_slope), relu(negative_slope == 0) {}

  [[gnu::always_inline]] Vector operator()(Vector gate, Vector value) const {
    if (relu) return gate <= Vector{} ? Vector{} : value;
    return gate > Vector{} ? value : value * slopes;
  }
  float operator()(float gate, float value) const {
    if (relu) return gate <= 0 ? 0 : value;
    return gate > 0 ? value : value * slope;
  }

  Vector slopes;
  float slope;
  bool relu;
};

}  // namespace genimg::cpu::GENIMG_ISA
