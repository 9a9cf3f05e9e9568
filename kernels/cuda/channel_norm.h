// Batch norm and LeakyReLU of the channels that a thread has.
#pragma once

#include "leaky.h"
#include "vector.h"

namespace genimg::cuda {

__device__ __forceinline__ bool is_finite(float value) { return value - value == 0; }

// The pivot that is subtracted from a channel's values, so that their mean keeps its digits however
// far it is from 0: the first value, if it is finite.
template <typename T>
__device__ __forceinline__ float pivot_of(T first) {
  const float value = widen(first);
  return is_finite(value) ? value : 0;
}

// Reads the pivots of the thread's channels.
template <int kSlots, typename T, typename Walk>
__device__ __forceinline__ void read_pivots(float (&pivots)[kSlots], const T* x, const Walk& walk) {
  if (walk.end == 0) return;
#pragma unroll
  for (int s = 0; s < kSlots; ++s) pivots[s] = pivot_of(x[walk.offset(0) + s]);
}

// Count, mean and the sum of squared deviations, per channel, of values minus the pivot.
template <int kSlots>
struct Moments {
  static constexpr int kNumbers = 1 + 2 * kSlots;
  float count = 0;
  float mean[kSlots] = {}, m2[kSlots] = {};

  __device__ __forceinline__ float number(int i) const {
    return i == 0 ? count : i <= kSlots ? mean[i - 1] : m2[i - 1 - kSlots];
  }
  __device__ __forceinline__ void merge(const float (&other)[kNumbers]) {
    if (other[0] == 0) return;
    const float total = count + other[0], share = other[0] / total;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const float delta = other[1 + s] - mean[s];
      mean[s] +=
          is_finite(delta) ? delta * share : other[1 + s];  // keeps Inf, where Inf - Inf is NaN
      // If the own count is 0, the product is 0; a square that overflows would give Inf * 0.
      m2[s] += other[1 + kSlots + s] + delta * (delta * (count * share));
    }
    count = total;
  }
};

// z = (x - mean) * scale + shift of the thread's channels.
template <int kSlots>
struct Affine {
  float mean[kSlots], scale[kSlots], shift[kSlots];

  // `means` and `rstds` begin at the thread's channels.
  __device__ __forceinline__ Affine(int channel, const float* weight, const float* bias,
                                    const float* means, const float* rstds) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      mean[s] = means[s];
      scale[s] = (weight ? weight[channel + s] : 1.0f) * rstds[s];
      shift[s] = bias ? bias[channel + s] : 0.0f;
    }
  }
};

}  // namespace genimg::cuda
