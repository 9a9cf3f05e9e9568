// A C interface over the launchers, for ctypes: one function per kernel, pass and dtype.
#include "leaky_relu.h"
#include "testing.h"

using bf16 = __nv_bfloat16;
using fp16 = __half;
using fp32 = float;

#define FOR_EACH_DTYPE(X) X(fp32) X(fp16) X(bf16)

#define LEAKY_RELU(T)                                                                   \
  SIMT_EXPORT int leaky_relu_fwd_##T(const T* x, T* y, int64_t n, float slope) {        \
    return simt::guarded(                                                               \
        [=] { return genimg::cuda::launch_leaky_relu_fwd(x, y, n, slope, nullptr); });  \
  }                                                                                     \
  SIMT_EXPORT int leaky_relu_bwd_##T(const T* grad_y, const T* x, T* grad_x, int64_t n, \
                                     float slope) {                                     \
    return simt::guarded([=] {                                                          \
      return genimg::cuda::launch_leaky_relu_bwd(grad_y, x, grad_x, n, slope, nullptr); \
    });                                                                                 \
  }
FOR_EACH_DTYPE(LEAKY_RELU)
