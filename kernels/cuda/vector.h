// 16-byte accesses, and conversions between half precision and float.
#pragma once

#include "simt/simt.h"

namespace genimg::cuda {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// By default 16 bytes, the widest access of a thread.
template <typename T, int kLanes = 16 / sizeof(T)>
struct alignas(kLanes * sizeof(T)) Vector {
  static constexpr int kSize = kLanes;
  T lane[kLanes];
};

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T narrow(float value);
template <>
__device__ __forceinline__ float narrow<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

template <int kLanes, typename T>
__device__ __forceinline__ Vector<T, kLanes> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T, kLanes>*>(from);
}

template <typename T, int kLanes>
__device__ __forceinline__ void store_vector(T* to, const Vector<T, kLanes>& values) {
  *reinterpret_cast<Vector<T, kLanes>*>(to) = values;
}

// Whether vectors can be read and written at all of these addresses.
template <typename... P>
bool are_aligned(P... pointers) {
  return (reinterpret_cast<uintptr_t>(pointers) | ... | uintptr_t{0}) % 16 == 0;
}

}  // namespace genimg::cuda
