// Prologues: norm, activation and norm gradient, applied to an operand on its way to shared memory.
// The padding around an image stays 0.
#pragma once

#include "../leaky.h"
#include "../vector.h"
#include "geometry.h"

namespace genimg::cuda {

// Reads neighbouring floats of a per-channel array, which is aligned if kLanes is more than one.
template <int kLanes>
__device__ __forceinline__ void load_channels(float (&to)[kLanes], const float* from) {
  if constexpr (kLanes % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kLanes; i += 4) {
      const float4 part = *reinterpret_cast<const float4*>(from + i);
      to[i] = part.x;
      to[i + 1] = part.y;
      to[i + 2] = part.z;
      to[i + 3] = part.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) to[i] = from[i];
  }
}

// Reads neighbouring elements as floats: one, or as many as a vector has.
template <int kLanes, typename T>
__device__ __forceinline__ void load_elements(float (&to)[kLanes], const T* from) {
  if constexpr (kLanes == Vector<T>::kSize) {
    const Vector<T> given = *reinterpret_cast<const Vector<T>*>(from);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) to[i] = widen(given.lane[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) to[i] = widen(from[i]);
  }
}

// No prologue: whole chunks can be copied by cp.async.
template <typename T>
struct NoPrologue {
  static constexpr bool kCopies = true;
  __device__ explicit NoPrologue(const ConvPrologue&) {}
  template <int kLanes>
  __device__ __forceinline__ void operator()(T (&)[kLanes], int64_t, int) const {}
};

// Every prologue that ConvPrologue describes; all threads take the same branch.
template <typename T>
struct AnyPrologue {
  static constexpr bool kCopies = false;
  ConvPrologue given;
  __device__ explicit AnyPrologue(const ConvPrologue& prologue) : given(prologue) {}

  // `values` are elements of the image from `offset` on, of channels from c on.
  template <int kLanes>
  __device__ __forceinline__ void operator()(T (&values)[kLanes], int64_t offset, int c) const {
    if (given.kind == ConvPrologue::kNone) return;
    float mean[kLanes], scale[kLanes], shift[kLanes];
    load_channels(scale, given.scale + c);
    if (given.kind == ConvPrologue::kScaled) {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) values[i] = narrow<T>(widen(values[i]) * scale[i]);
      return;
    }
    load_channels(mean, given.mean + c);
    load_channels(shift, given.shift + c);
    if (given.kind == ConvPrologue::kAffineLeaky) {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        const float z = (widen(values[i]) - mean[i]) * scale[i] + shift[i];
        values[i] = narrow<T>(leaky(z, z, given.negative_slope));
      }
      return;
    }
    float slope[kLanes], y[kLanes];
    load_channels(slope, given.slope + c);
    load_elements(y, static_cast<const T*>(given.y) + offset);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      values[i] = narrow<T>(widen(values[i]) * scale[i] + (y[i] - mean[i]) * slope[i] + shift[i]);
    }
  }
};

// Whether a prologue's arrays are aligned for vectors.
inline bool are_aligned(const ConvPrologue& p) {
  return are_aligned(p.y, p.mean, p.scale, p.shift, p.slope);
}

}  // namespace genimg::cuda
