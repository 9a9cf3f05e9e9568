// Normal noise by Philox 4x32-10, as genimg/reference/reparam_kl.py defines it.
#pragma once

#include <cstdint>

#include "elementary.h"

namespace genimg::cpu::GENIMG_ISA {

constexpr int kNoiseBlock = 64;  // normal values made at a time
constexpr int kCounters = kNoiseBlock / 4;

// a * b, high and low half.
inline void multiply(uint32_t a, uint32_t b, uint32_t* high, uint32_t* low) {
  const uint64_t product = static_cast<uint64_t>(a) * b;
  *high = static_cast<uint32_t>(product >> 32);
  *low = static_cast<uint32_t>(product);
}

// Uniform in (0, 1]: w 2^-32 + 2^-33, the word rounded to float first.
inline float to_uniform(uint32_t word) { return static_cast<float>(word) * 0x1p-32f + 0x1p-33f; }

// Elements block * kNoiseBlock and on of the stream.
inline void noise_block(uint64_t key, uint64_t offset, int64_t block, float* noise) {
  uint32_t c0[kCounters], c1[kCounters], c2[kCounters], c3[kCounters];
  const uint64_t first = static_cast<uint64_t>(block) * kCounters;
  for (int i = 0; i < kCounters; ++i) {
    c0[i] = static_cast<uint32_t>(first + i);
    c1[i] = static_cast<uint32_t>((first + i) >> 32);
    c2[i] = static_cast<uint32_t>(offset);
    c3[i] = static_cast<uint32_t>(offset >> 32);
  }
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kCounters; ++i) {
      uint32_t high0, low0, high2, low2;
      multiply(c0[i], 0xD2511F53u, &high0, &low0);
      multiply(c2[i], 0xCD9E8D57u, &high2, &low2);
      c0[i] = high2 ^ c1[i] ^ k0;
      c1[i] = low2;
      c2[i] = high0 ^ c3[i] ^ k1;
      c3[i] = low0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int i = 0; i < kCounters; ++i) {
    float sine, cosine;
    const float radius = __builtin_sqrtf(-2 * log_of(to_uniform(c0[i])));
    sincos_turn(to_uniform(c1[i]), &sine, &cosine);
    noise[4 * i] = radius * cosine;
    noise[4 * i + 1] = radius * sine;
    const float other_radius = __builtin_sqrtf(-2 * log_of(to_uniform(c2[i])));
    sincos_turn(to_uniform(c3[i]), &sine, &cosine);
    noise[4 * i + 2] = other_radius * cosine;
    noise[4 * i + 3] = other_radius * sine;
  }
}

}  // namespace genimg::cpu::GENIMG_ISA
