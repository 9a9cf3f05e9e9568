#include "reparam_kl.h"

#include "elementary.h"
#include "philox.h"
#include "storage.h"

namespace genimg::cpu::GENIMG_ISA {
namespace {

constexpr float kLogvarMin = -30, kLogvarMax = 20;

// A comparison with NaN is false, so that NaN is kept.
inline float clamp(float logvar) {
  const float above = logvar < kLogvarMin ? kLogvarMin : logvar;
  return above > kLogvarMax ? kLogvarMax : above;
}

// The noise of a range of elements, drawn one block at a time; rows that share a block reuse it.
struct Noise {
  Noise(uint64_t stream_key, uint64_t stream_offset) : key(stream_key), offset(stream_offset) {}

  // Element `index` and those behind it in its block.
  const float* at(int64_t index) {
    if (index / kNoiseBlock != block) {
      block = index / kNoiseBlock;
      noise_block(key, offset, block, values);
    }
    return values + index % kNoiseBlock;
  }

  const uint64_t key, offset;
  int64_t block = -1;
  alignas(64) float values[kNoiseBlock];
};

// How many elements from `index` on, up to `end`, lie in index's block.
inline int in_block(int64_t index, int64_t end) {
  const int64_t left = kNoiseBlock - index % kNoiseBlock;
  return static_cast<int>(end - index < left ? end - index : left);
}

struct FullBlock {
  constexpr operator int() const { return kNoiseBlock; }
};

// Calls run(count); for a full block the count is a constant.
template <typename Run>
[[gnu::always_inline]] inline void over_block(int count, Run run) {
  if (count == kNoiseBlock) {
    run(FullBlock{});
  } else {
    run(count);
  }
}

// The sum of a block in a fixed order, sixteen lanes wide.
inline float sum_block(const float* terms) {
  float lanes[16];
  for (int i = 0; i < 16; ++i) {
    lanes[i] = (terms[i] + terms[i + 16]) + (terms[i + 32] + terms[i + 48]);
  }
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

template <typename T>
void fwd(const typename T::Storage* __restrict mu, const typename T::Storage* __restrict logvar,
         uint64_t key, uint64_t offset, typename T::Storage* __restrict z, float* __restrict kl,
         int64_t row_begin, int64_t row_end, int64_t row_size) {
  Noise noise(key, offset);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t end = (row + 1) * row_size;
    double sum = 0;
    for (int64_t index = row * row_size; index < end;) {
      const float* eps = noise.at(index);
      const int count = in_block(index, end);
      alignas(64) float terms[kNoiseBlock] = {};
      over_block(count, [&](auto size) __attribute__((always_inline)) {
        for (int i = 0; i < size; ++i) {
          const float mean = T::load(mu + index + i);
          const float lv = clamp(T::load(logvar + index + i));
          T::store(z + index + i, mean + exp_of(0.5f * lv) * eps[i]);
          terms[i] = 0.5f * (mean * mean + expm1_minus_x(lv));
        }
      });
      sum += sum_block(terms);
      index += count;
    }
    kl[row] = static_cast<float>(sum);
  }
}

template <typename T>
void bwd(const typename T::Storage* __restrict grad_z, const float* __restrict grad_kl,
         const typename T::Storage* __restrict mu, const typename T::Storage* __restrict logvar,
         uint64_t key, uint64_t offset, typename T::Storage* __restrict grad_mu,
         typename T::Storage* __restrict grad_logvar, int64_t row_begin, int64_t row_end,
         int64_t row_size) {
  Noise noise(key, offset);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t end = (row + 1) * row_size;
    const float g = grad_kl[row];
    for (int64_t index = row * row_size; index < end;) {
      const float* eps = noise.at(index);
      const int count = in_block(index, end);
      over_block(count, [&](auto size) __attribute__((always_inline)) {
        for (int i = 0; i < size; ++i) {
          const float dz = T::load(grad_z + index + i);
          const float lv = T::load(logvar + index + i);
          const float clamped = clamp(lv);
          const float slope = 0.5f * (dz * eps[i] * exp_of(0.5f * clamped) + g * expm1_of(clamped));
          T::store(grad_mu + index + i, dz + g * T::load(mu + index + i));
          T::store(grad_logvar + index + i, lv == clamped ? slope : 0.0f);
        }
      });
      index += count;
    }
  }
}

}  // namespace

void reparam_kl_fwd_f32(const float* mu, const float* logvar, uint64_t key, uint64_t offset,
                        float* z, float* kl, int64_t row_begin, int64_t row_end, int64_t row_size) {
  fwd<F32>(mu, logvar, key, offset, z, kl, row_begin, row_end, row_size);
}

void reparam_kl_fwd_bf16(const uint16_t* mu, const uint16_t* logvar, uint64_t key, uint64_t offset,
                         uint16_t* z, float* kl, int64_t row_begin, int64_t row_end,
                         int64_t row_size) {
  fwd<BF16>(mu, logvar, key, offset, z, kl, row_begin, row_end, row_size);
}

void reparam_kl_bwd_f32(const float* grad_z, const float* grad_kl, const float* mu,
                        const float* logvar, uint64_t key, uint64_t offset, float* grad_mu,
                        float* grad_logvar, int64_t row_begin, int64_t row_end, int64_t row_size) {
  bwd<F32>(grad_z, grad_kl, mu, logvar, key, offset, grad_mu, grad_logvar, row_begin, row_end,
           row_size);
}

void reparam_kl_bwd_bf16(const uint16_t* grad_z, const float* grad_kl, const uint16_t* mu,
                         const uint16_t* logvar, uint64_t key, uint64_t offset, uint16_t* grad_mu,
                         uint16_t* grad_logvar, int64_t row_begin, int64_t row_end,
                         int64_t row_size) {
  bwd<BF16>(grad_z, grad_kl, mu, logvar, key, offset, grad_mu, grad_logvar, row_begin, row_end,
            row_size);
}

}  // namespace genimg::cpu::GENIMG_ISA
