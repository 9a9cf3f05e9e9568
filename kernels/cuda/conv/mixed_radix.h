// Mixed-radix numbers: the column, row and image of a pixel, or the channel, column and row of a
// tap. A loop increments them without dividing.
#pragma once

#include "../simt/simt.h"

namespace genimg::cuda {

struct Radix {
  int low, middle;
};

struct Digits {
  int low, middle, high;

  __device__ __forceinline__ void increment(Radix radix) {
    if (++low < radix.low) return;
    low = 0;
    if (++middle < radix.middle) return;
    middle = 0;
    ++high;
  }

  // `step` is in digits, too.
  __device__ __forceinline__ void add(const Digits& step, Radix radix) {
    low += step.low;
    middle += step.middle;
    high += step.high;
    if (low >= radix.low) {
      low -= radix.low;
      ++middle;
    }
    if (middle >= radix.middle) {
      middle -= radix.middle;
      ++high;
    }
  }
};

__device__ __forceinline__ Digits digits_of(int64_t number, Radix radix) {
  if (number >> 31 == 0) {  // 64-bit divisions are many instructions
    const auto small = static_cast<uint32_t>(number);
    const uint32_t above = small / static_cast<uint32_t>(radix.low);
    return {static_cast<int>(small - above * static_cast<uint32_t>(radix.low)),
            static_cast<int>(above % static_cast<uint32_t>(radix.middle)),
            static_cast<int>(above / static_cast<uint32_t>(radix.middle))};
  }
  const int64_t above = number / radix.low;
  return {static_cast<int>(number - above * radix.low), static_cast<int>(above % radix.middle),
          static_cast<int>(above / radix.middle)};
}

}  // namespace genimg::cuda
