// Storage types: how an element is read into a float and written back.
//
// bfloat16 as bit patterns: widening is a shift, narrowing rounds to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

namespace genimg::cpu::GENIMG_ISA {

inline float bf16_to_f32(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// AVX512-BF16's own conversion flushes subnormals; this one keeps them, and keeps NaN.
inline uint16_t f32_to_bf16(float value) {
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof wide);
  const uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
  const uint32_t quiet_nan = (wide >> 16) | 0x40;
  const bool is_nan = (wide & 0x7fffffff) > 0x7f800000;
  return static_cast<uint16_t>(is_nan ? quiet_nan : rounded);
}

struct F32 {
  using Storage = float;
  static float load(const float* p) { return *p; }
  static void store(float* p, float value) { *p = value; }
};

struct BF16 {
  using Storage = uint16_t;
  static float load(const uint16_t* p) { return bf16_to_f32(*p); }
  static void store(uint16_t* p, float value) { *p = f32_to_bf16(value); }
};

}  // namespace genimg::cpu::GENIMG_ISA
