// CUDA's types, as far as genimg's kernels use them, for a build without CUDA's headers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = void*;

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_size = 1, unsigned y_size = 1, unsigned z_size = 1)
      : x(x_size), y(y_size), z(z_size) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

struct alignas(8) float2 {
  float x, y;
};

// Bit patterns; arithmetic is in float, through the conversions below.
struct alignas(2) __half {
  uint16_t bits;
};

struct alignas(2) __nv_bfloat16 {
  uint16_t bits;
};

namespace simt {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

}  // namespace simt

inline float __bfloat162float(__nv_bfloat16 value) {
  return simt::from_bits(static_cast<uint32_t>(value.bits) << 16);
}

// Rounds to nearest, ties to even; every NaN becomes CUDA's canonical NaN.
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  if (value != value) return {0x7fff};
  const uint32_t bits = simt::to_bits(value);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float __half2float(__half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16, magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00) return simt::from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude < 0x400) {  // subnormal: a multiple of 2^-24
    const float scaled = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -scaled : scaled;
  }
  return simt::from_bits(sign | ((magnitude << 13) + (112u << 23)));
}

inline __half __float2half_rn(float value) {
  const uint32_t bits = simt::to_bits(value), magnitude = bits & 0x7fffffff;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return {0x7fff};
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // 65520 and above
  if (magnitude < 0x38800000) {  // below 2^-14: adding 0.5 rounds to a multiple of 2^-24
    const uint32_t rounded = simt::to_bits(simt::from_bits(magnitude) + 0.5f) - simt::to_bits(0.5f);
    return {static_cast<uint16_t>(sign | rounded)};
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23);
  return {static_cast<uint16_t>(sign | rounded >> 13)};
}
