// Normal noise by Philox 4x32-10, as genimg/reference/reparam_kl.py defines it.
#pragma once

#include <cstdint>

#include "elementary.h"
#include "vector.h"

namespace genimg::cpu::GENIMG_ISA {

constexpr int kNoiseBlock = 64;  // normal values made at a time
constexpr int kCounters = kNoiseBlock / 4;

// Words of 32 bits in lanes of 64, whose products need no shuffling.
constexpr int kLanes = kWidth / 2;
typedef uint64_t Words __attribute__((vector_size(kLanes * 8)));

inline Words lanes_of(uint64_t value) { return value - Words{}; }

struct Counters {
  Words c0, c1, c2, c3;
};

inline void philox_rounds(uint64_t key, Counters* counters) {
  const Words low = lanes_of(0xffffffff);
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  Counters c = *counters;
  for (int round = 0; round < 10; ++round) {
    const Words p0 = c.c0 * lanes_of(0xD2511F53), p2 = c.c2 * lanes_of(0xCD9E8D57);
    c = {(p2 >> 32) ^ c.c1 ^ lanes_of(k0), p2 & low, (p0 >> 32) ^ c.c3 ^ lanes_of(k1), p0 & low};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  *counters = c;
}

inline void put_words(Words words, uint32_t* to) {
  typedef uint32_t Half __attribute__((vector_size(kLanes * 4)));
  const Half half = __builtin_convertvector(words, Half);
  __builtin_memcpy(to, &half, sizeof half);
}

// Uniform in (0, 1]: w 2^-32 + 2^-33, the word rounded to float first.
inline float to_uniform(uint32_t word) { return static_cast<float>(word) * 0x1p-32f + 0x1p-33f; }

// Two normal values of two words: Box and Muller's.
inline void normal_pairs(const uint32_t* radii, const uint32_t* angles, float* cosines,
                         float* sines) {
  for (int i = 0; i < kCounters; ++i) {
    float sine, cosine;
    const float radius = __builtin_sqrtf(-2 * log_of(to_uniform(radii[i])));
    sincos_turn(to_uniform(angles[i]), &sine, &cosine);
    cosines[i] = radius * cosine;
    sines[i] = radius * sine;
  }
}

// Elements block * kNoiseBlock and on of the stream: four for each counter.
inline void noise_block(uint64_t key, uint64_t offset, int64_t block, float* noise) {
  uint32_t words[4][kCounters];
  const uint64_t first = static_cast<uint64_t>(block) * kCounters;
  for (int i = 0; i < kCounters; i += kLanes) {
    uint64_t low[kLanes], high[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      low[lane] = (first + i + lane) & 0xffffffff;
      high[lane] = (first + i + lane) >> 32;
    }
    Counters counters;
    __builtin_memcpy(&counters.c0, low, sizeof low);
    __builtin_memcpy(&counters.c1, high, sizeof high);
    counters.c2 = lanes_of(offset & 0xffffffff);
    counters.c3 = lanes_of(offset >> 32);
    philox_rounds(key, &counters);
    put_words(counters.c0, words[0] + i);
    put_words(counters.c1, words[1] + i);
    put_words(counters.c2, words[2] + i);
    put_words(counters.c3, words[3] + i);
  }
  float values[4][kCounters];
  normal_pairs(words[0], words[1], values[0], values[1]);
  normal_pairs(words[2], words[3], values[2], values[3]);
  for (int i = 0; i < kCounters; i += kWidth) {
    const Vector a = load(values[0] + i), b = load(values[1] + i), c = load(values[2] + i),
                 d = load(values[3] + i);
    const Vector even = interleave<false>(a, c), odd = interleave<false>(b, d);
    const Vector later_even = interleave<true>(a, c), later_odd = interleave<true>(b, d);
    store(noise + 4 * i, interleave<false>(even, odd));
    store(noise + 4 * i + kWidth, interleave<true>(even, odd));
    store(noise + 4 * i + 2 * kWidth, interleave<false>(later_even, later_odd));
    store(noise + 4 * i + 3 * kWidth, interleave<true>(later_even, later_odd));
  }
}

}  // namespace genimg::cpu::GENIMG_ISA
