// Epilogues: bias, activation and gate, applied to a result before it is stored.
#pragma once

#include "prologue.h"
#include "tile.h"

namespace genimg::cuda {

__device__ __forceinline__ float activate(float value, Activation activation, float slope) {
  switch (activation) {
    case Activation::kLeakyRelu:
      return leaky(value, value, slope);
    case Activation::kTanh:
      return tanhf(value);
    case Activation::kSigmoid:
      return 1 / (1 + expf(-value));
    default:
      return value;
  }
}

// An epilogue changes neighbouring values of a row before they are stored; the first is at `column`
// of the row at `offset`. Values from `columns` on are not stored.
struct BiasActivation {
  static constexpr bool kSums = false;
  ConvEpilogue given;

  template <int kLanes>
  __device__ __forceinline__ void operator()(float (&values)[kLanes], int64_t, int64_t column,
                                             int64_t columns) const {
    if (given.bias != nullptr) {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        if (column + i < columns) values[i] += given.bias[column + i];
      }
    }
    if (given.activation == Activation::kNone) return;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      values[i] = activate(values[i], given.activation, given.negative_slope);
    }
  }
};

// Every epilogue that ConvEpilogue describes.
template <typename T>
struct AnyEpilogue {
  static constexpr bool kSums = true;
  ConvEpilogue given;

  template <int kLanes>
  __device__ __forceinline__ void operator()(float (&values)[kLanes], int64_t offset,
                                             int64_t column, int64_t columns) const {
    BiasActivation{given}(values, offset, column, columns);
    if (given.gate_y == nullptr) return;
    const T* const y = static_cast<const T*>(given.gate_y) + offset;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const int64_t c = column + i;
      if (c >= columns) continue;
      float z = widen(y[c]);
      if (given.gate.mean != nullptr) {
        z = (z - given.gate.mean[c]) * given.gate.scale[c] + given.gate.shift[c];
      }
      values[i] = leaky(z, values[i], given.gate_slope);
    }
  }
};

}  // namespace genimg::cuda
