// dgrad's kernel for Hopper by itself, for tests/nvcc_library.py: no op takes it yet.
#include "../../../kernels/cuda/conv_dgrad_halo.h"
#include "testing.h"

namespace {

template <typename T>
int dgrad(const int64_t* numbers, const T* small, const T* weight, const float* bias, T* large) {
  const auto number = [=](int i) { return static_cast<int>(numbers[i]); };
  const genimg::cuda::ConvGeometry geometry = {
      numbers[0], number(1), number(2), number(3),  number(4),  number(5), number(6),
      number(7),  number(8), number(9), number(10), number(11), number(12)};
  genimg::cuda::ConvEpilogue epilogue;
  epilogue.bias = bias;
  return simt::guarded([=] {
    if (!conv_dgrad_halo_serves(geometry, small, weight, large, {}, false)) {
      return cudaErrorInvalidValue;
    }
    return launch_conv_dgrad_halo(geometry, small, weight, large, {}, epilogue, false, nullptr);
  });
}

}  // namespace

SIMT_EXPORT int dgrad_halo_bf16(const int64_t* geometry, const __nv_bfloat16* small,
                                const __nv_bfloat16* weight, const float* bias,
                                __nv_bfloat16* large) {
  return dgrad(geometry, small, weight, bias, large);
}
SIMT_EXPORT int dgrad_halo_fp16(const int64_t* geometry, const __half* small, const __half* weight,
                                const float* bias, __half* large) {
  return dgrad(geometry, small, weight, bias, large);
}
