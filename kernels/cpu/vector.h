// Vectors of floats of the width of the level that is compiled, and the block of channels that
// convolutions use.
#pragma once

#include <cstdint>

#include "storage.h"

namespace genimg::cpu::GENIMG_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

// Channels of a block: the same at every level, so that scratch memory has the same layout.
constexpr int kBlock = 16;

typedef float Vector __attribute__((vector_size(kWidth * 4)));
typedef uint32_t Bits __attribute__((vector_size(kWidth * 4)));
typedef int32_t Mask __attribute__((vector_size(kWidth * 4)));

inline Vector load(const float* p) {
  Vector v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// bfloat16 bit patterns, widened.
inline Vector load(const uint16_t* p) {
  typedef uint16_t Halves __attribute__((vector_size(kWidth * 2)));
  Halves narrow;
  __builtin_memcpy(&narrow, p, sizeof narrow);
  const Bits wide = __builtin_convertvector(narrow, Bits) << 16;
  return reinterpret_cast<Vector>(wide);
}

inline float widen(float value) { return value; }
inline float widen(uint16_t bits) { return bf16_to_f32(bits); }

inline void store(float* p, Vector v) { __builtin_memcpy(p, &v, sizeof v); }

// Rounds to nearest even and keeps NaN; see f32_to_bf16 in storage.h.
inline void store(uint16_t* p, Vector v) {
  typedef uint16_t Halves __attribute__((vector_size(kWidth * 2)));
  const Bits wide = reinterpret_cast<Bits>(v);
  const Bits rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
  const Bits quiet_nan = (wide >> 16) | 0x40;
  const Halves narrow = __builtin_convertvector(v == v ? rounded : quiet_nan, Halves);
  __builtin_memcpy(p, &narrow, sizeof narrow);
}

inline Vector broadcast(float value) { return value - Vector{}; }

// The first `count` of a vector's elements; the others are 0.
template <typename T>
inline Vector load_first(const T* p, int count) {
  T values[kWidth] = {};
  for (int i = 0; i < count; ++i) values[i] = p[i];
  return load(values);
}

template <typename T>
inline void store_first(T* p, Vector v, int count) {
  T values[kWidth];
  store(values, v);
  for (int i = 0; i < count; ++i) p[i] = values[i];
}

// a0 b0 a1 b1 ... of the lower or the upper halves.
template <bool kUpper>
[[gnu::always_inline]] inline Vector interleave(Vector a, Vector b) {
#ifdef __clang__
  float from[2][kWidth], to[kWidth];
  store(from[0], a);
  store(from[1], b);
  for (int i = 0; i < kWidth; ++i) to[i] = from[i % 2][i / 2 + (kUpper ? kWidth / 2 : 0)];
  return load(to);
#else
  int32_t order[kWidth];
  for (int i = 0; i < kWidth; ++i) {
    order[i] = i % 2 * kWidth + i / 2 + (kUpper ? kWidth / 2 : 0);
  }
  Mask mask;
  __builtin_memcpy(&mask, order, sizeof mask);
  return __builtin_shuffle(a, b, mask);
#endif
}

// Rows to columns: each round puts the rows i and i + kWidth / 2 between one another.
[[gnu::always_inline]] inline void transpose(Vector (&rows)[kWidth]) {
  for (int round = 1; round < kWidth; round *= 2) {
    Vector next[kWidth];
    for (int i = 0; i < kWidth / 2; ++i) {
      next[2 * i] = interleave<false>(rows[i], rows[i + kWidth / 2]);
      next[2 * i + 1] = interleave<true>(rows[i], rows[i + kWidth / 2]);
    }
    for (int i = 0; i < kWidth; ++i) rows[i] = next[i];
  }
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace genimg::cpu::GENIMG_ISA
