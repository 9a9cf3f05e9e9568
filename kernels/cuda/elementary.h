// exp, log, sine and cosine as kernels/cpu/elementary.h has them, so that the values agree with the
// CPU's to an ulp or two, and so that expm1(x) - x does not cancel. No slow path, no local memory.
#pragma once

#include "simt/simt.h"

namespace genimg::cuda {

// x = n ln 2 + r with |r| <= ln(2) / 2, and the parts of exp and expm1.
struct ExpParts {
  float scale;      // 2^n
  float r;          //
  float remainder;  // exp(r) - 1 - r
};

// For |x| <= 80. The shift by 1.5 * 2^23 rounds to the nearest integer.
__device__ __forceinline__ ExpParts exp_parts(float x) {
  const float shifted = x * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  // ln 2 in two pieces, so that n times the first is exact.
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.0f / 40320;
  p = p * r + 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  return {__uint_as_float((__float_as_uint(shifted) + 127) << 23), r, p * r * r};
}

__device__ __forceinline__ float exp_of(float x) {
  const ExpParts parts = exp_parts(x);
  return parts.scale * (1 + (parts.r + parts.remainder));
}

__device__ __forceinline__ float expm1_of(float x) {
  const ExpParts parts = exp_parts(x);
  return parts.scale * (parts.r + parts.remainder) + (parts.scale - 1);
}

// Where n is 0, r is x, and what is left is the remainder alone.
__device__ __forceinline__ float expm1_minus_x(float x) {
  const ExpParts parts = exp_parts(x);
  return (parts.scale * parts.r - x) + (parts.scale * parts.remainder + (parts.scale - 1));
}

// For normal x > 0: x = 2^e m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m - 1) / (m + 1)).
__device__ __forceinline__ float log_of(float x) {
  const unsigned bits = __float_as_uint(x) - 0x3f3504f3;  // sqrt(1/2)
  const float e = static_cast<float>(static_cast<int>(bits) >> 23);
  const float m = __uint_as_float((bits & 0x7fffff) + 0x3f3504f3);
  const float r = m - 1;
  const float s = r / (m + 1);
  const float s2 = s * s;
  float p = 2.0f / 11;
  p = p * s2 + 2.0f / 9;
  p = p * s2 + 2.0f / 7;
  p = p * s2 + 2.0f / 5;
  p = p * s2 + 2.0f / 3;
  const float log_m = r - s * (r - p * s2);  // 2 s = r - s r, exact in r
  return e * 0.693359375f + (log_m + e * -2.12194440e-4f);
}

// Sine and cosine of 2 pi u for 0 <= u <= 1: a quarter turn's remainder is exact in float.
__device__ __forceinline__ void sincos_turn(float u, float* sine, float* cosine) {
  const float quarters = u * 4;
  const float shifted = quarters + 12582912.0f;
  const float x = (quarters - (shifted - 12582912.0f)) * 1.57079633f;  // |x| <= pi / 4
  const float x2 = x * x;
  float s = 1.0f / 362880;
  s = s * x2 - 1.0f / 5040;
  s = s * x2 + 1.0f / 120;
  s = s * x2 - 1.0f / 6;
  s = s * x2 * x + x;
  float c = -1.0f / 3628800;
  c = c * x2 + 1.0f / 40320;
  c = c * x2 - 1.0f / 720;
  c = c * x2 + 1.0f / 24;
  c = c * x2 - 0.5f;
  c = c * x2 + 1;
  const unsigned quadrant = __float_as_uint(shifted);
  const float swapped_s = quadrant & 1 ? c : s, swapped_c = quadrant & 1 ? s : c;
  *sine = quadrant & 2 ? -swapped_s : swapped_s;
  *cosine = (quadrant + 1) & 2 ? -swapped_c : swapped_c;
}

}  // namespace genimg::cuda
