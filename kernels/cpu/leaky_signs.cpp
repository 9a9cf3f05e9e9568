#include "leaky_signs.h"

#include "leaky.h"

namespace genimg::cpu::GENIMG_ISA {
namespace {

constexpr int kRows = kSignGroup / kSignBytes;
typedef uint8_t Bytes __attribute__((vector_size(kWidth)));

// The last group, padded with zeros to a whole one.
template <typename T, typename Use>
void use_group(const T* from, int64_t count, Use use) {
  if (count >= kSignGroup) return use(from);
  T padded[kSignGroup] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
  use(padded);
}

template <typename T>
void pack(const T* y, int64_t n, float negative_slope, uint8_t* signs, int64_t begin, int64_t end) {
  const Leaky leaky(negative_slope);
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * kSignGroup;
    use_group(y + first, n - first, [&](const T* values) {
      for (int64_t k = 0; k < kSignBytes; k += kWidth) {
        Mask bits = {};
        for (int j = 0; j < kRows; ++j) {
          const Vector v = load(values + j * kSignBytes + k);
          const Mask off = leaky.relu ? v <= Vector{} : ~(v > Vector{});
          bits |= ~off & ((1 << j) - Mask{});
        }
        const Bytes bytes = __builtin_convertvector(bits, Bytes);
        __builtin_memcpy(signs + group * kSignBytes + k, &bytes, sizeof bytes);
      }
    });
  }
}

template <typename T>
void bwd(const T* grad_y, const uint8_t* signs, int64_t n, float negative_slope, T* grad_x,
         int64_t begin, int64_t end) {
  const Leaky leaky(negative_slope);
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * kSignGroup, count = smaller(kSignGroup, n - first);
    use_group(grad_y + first, count, [&](const T* values) {
      T results[kSignGroup];
      T* const to = count == kSignGroup ? grad_x + first : results;
      for (int64_t k = 0; k < kSignBytes; k += kWidth) {
        Bytes bytes;
        __builtin_memcpy(&bytes, signs + group * kSignBytes + k, sizeof bytes);
        const Mask bits = __builtin_convertvector(bytes, Mask);
        for (int j = 0; j < kRows; ++j) {
          const Vector grad = load(values + j * kSignBytes + k);
          const Vector off = leaky.relu ? Vector{} : grad * leaky.slopes;
          store(to + j * kSignBytes + k, (bits & ((1 << j) - Mask{})) != Mask{} ? grad : off);
        }
      }
      for (int64_t i = 0; to == results && i < count; ++i) grad_x[first + i] = results[i];
    });
  }
}

}  // namespace

void leaky_signs_f32(const float* y, int64_t n, float negative_slope, uint8_t* signs, int64_t begin,
                     int64_t end) {
  pack(y, n, negative_slope, signs, begin, end);
}

void leaky_signs_bf16(const uint16_t* y, int64_t n, float negative_slope, uint8_t* signs,
                      int64_t begin, int64_t end) {
  pack(y, n, negative_slope, signs, begin, end);
}

void leaky_signs_bwd_f32(const float* grad_y, const uint8_t* signs, int64_t n, float negative_slope,
                         float* grad_x, int64_t begin, int64_t end) {
  bwd(grad_y, signs, n, negative_slope, grad_x, begin, end);
}

void leaky_signs_bwd_bf16(const uint16_t* grad_y, const uint8_t* signs, int64_t n,
                          float negative_slope, uint16_t* grad_x, int64_t begin, int64_t end) {
  bwd(grad_y, signs, n, negative_slope, grad_x, begin, end);
}

}  // namespace genimg::cpu::GENIMG_ISA
