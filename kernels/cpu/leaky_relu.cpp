#include "leaky_relu.h"

#include "storage.h"

namespace genimg::cpu::GENIMG_ISA {
namespace {

// Both sides of the branch compute the product, so that the compiler vectorises it as a select.
inline float leaky(float gate, float value, float slope) {
  const float scaled = value * slope;
  return gate > 0 ? value : scaled;
}

template <typename T>
void fwd(const typename T::Storage* __restrict x, int64_t x_stride,
         typename T::Storage* __restrict y, int64_t y_stride, int64_t n, float slope) {
  if (x_stride == 1 && y_stride == 1) {
    for (int64_t i = 0; i < n; ++i) {
      const float value = T::load(x + i);
      T::store(y + i, leaky(value, value, slope));
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const float value = T::load(x + i * x_stride);
    T::store(y + i * y_stride, leaky(value, value, slope));
  }
}

template <typename T>
void bwd(const typename T::Storage* __restrict grad_y, int64_t grad_y_stride,
         const typename T::Storage* __restrict x, int64_t x_stride,
         typename T::Storage* __restrict grad_x, int64_t grad_x_stride, int64_t n, float slope) {
  if (grad_y_stride == 1 && x_stride == 1 && grad_x_stride == 1) {
    for (int64_t i = 0; i < n; ++i) {
      T::store(grad_x + i, leaky(T::load(x + i), T::load(grad_y + i), slope));
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const float gate = T::load(x + i * x_stride);
    T::store(grad_x + i * grad_x_stride, leaky(gate, T::load(grad_y + i * grad_y_stride), slope));
  }
}

}  // namespace

void leaky_relu_fwd_f32(const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t n,
                        float slope) {
  fwd<F32>(x, x_stride, y, y_stride, n, slope);
}

void leaky_relu_fwd_bf16(const uint16_t* x, int64_t x_stride, uint16_t* y, int64_t y_stride,
                         int64_t n, float slope) {
  fwd<BF16>(x, x_stride, y, y_stride, n, slope);
}

void leaky_relu_bwd_f32(const float* grad_y, int64_t grad_y_stride, const float* x,
                        int64_t x_stride, float* grad_x, int64_t grad_x_stride, int64_t n,
                        float slope) {
  bwd<F32>(grad_y, grad_y_stride, x, x_stride, grad_x, grad_x_stride, n, slope);
}

void leaky_relu_bwd_bf16(const uint16_t* grad_y, int64_t grad_y_stride, const uint16_t* x,
                         int64_t x_stride, uint16_t* grad_x, int64_t grad_x_stride, int64_t n,
                         float slope) {
  bwd<BF16>(grad_y, grad_y_stride, x, x_stride, grad_x, grad_x_stride, n, slope);
}

}  // namespace genimg::cpu::GENIMG_ISA
