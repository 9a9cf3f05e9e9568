// Normal noise by Philox 4x32-10, as genimg/reference/reparam_kl.py defines it.
#pragma once

#include "elementary.h"

namespace genimg::cuda {

struct Words {
  unsigned w[4];
};

// The four words of a counter under a key.
__device__ __forceinline__ Words philox_words(uint64_t key, uint64_t counter, uint64_t offset) {
  unsigned k0 = static_cast<unsigned>(key), k1 = static_cast<unsigned>(key >> 32);
  unsigned c0 = static_cast<unsigned>(counter), c1 = static_cast<unsigned>(counter >> 32);
  unsigned c2 = static_cast<unsigned>(offset), c3 = static_cast<unsigned>(offset >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned high0 = __umulhi(c0, 0xD2511F53u), low0 = c0 * 0xD2511F53u;
    const unsigned high2 = __umulhi(c2, 0xCD9E8D57u), low2 = c2 * 0xCD9E8D57u;
    c0 = high2 ^ c1 ^ k0;
    c1 = low2;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Uniform in (0, 1]: w 2^-32 + 2^-33, the word rounded to float first.
__device__ __forceinline__ float to_uniform(unsigned word) {
  return static_cast<float>(word) * 0x1p-32f + 0x1p-33f;
}

// Elements 4 * counter to 4 * counter + 3 of the stream, by two Box-Muller steps.
__device__ __forceinline__ void philox_normal(uint64_t key, uint64_t counter, uint64_t offset,
                                              float* values) {
  const Words words = philox_words(key, counter, offset);
#pragma unroll
  for (int pair = 0; pair < 4; pair += 2) {
    float sine, cosine;
    const float radius = sqrtf(-2 * log_of(to_uniform(words.w[pair])));
    sincos_turn(to_uniform(words.w[pair + 1]), &sine, &cosine);
    values[pair] = radius * cosine;
    values[pair + 1] = radius * sine;
  }
}

}  // namespace genimg::cuda
