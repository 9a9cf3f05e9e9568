// The Hopper kernels of the contractions by themselves, for tests/emulator/nvcc_library.py: an op
// would select another kernel where they do not support the call.
#include "../../../kernels/cuda/conv/sm90_dgrad.h"
#include "../../../kernels/cuda/conv/sm90_fprop.h"
#include "testing.h"

namespace {

genimg::cuda::ConvGeometry geometry_of(const int64_t* numbers) {
  const auto number = [=](int i) { return static_cast<int>(numbers[i]); };
  return {numbers[0], number(1), number(2), number(3),  number(4),  number(5), number(6),
          number(7),  number(8), number(9), number(10), number(11), number(12)};
}

genimg::cuda::ConvEpilogue adding(const float* bias) {
  genimg::cuda::ConvEpilogue epilogue;
  epilogue.bias = bias;
  return epilogue;
}

}  // namespace

#define GENIMG_EXPORT(direction, name, T)                                                      \
  SIMT_EXPORT int sm90_##direction##_##name(const int64_t* numbers, const T* from,             \
                                            const T* weight, const float* bias, T* to) {       \
    const genimg::cuda::ConvGeometry geometry = geometry_of(numbers);                          \
    return simt::guarded([=] {                                                                 \
      if (!conv_sm90_##direction##_serves(geometry, from, weight, to, {}, false)) {            \
        return cudaErrorInvalidValue;                                                          \
      }                                                                                        \
      return launch_conv_sm90_##direction(geometry, from, weight, to, {}, adding(bias), false, \
                                          nullptr);                                            \
    });                                                                                        \
  }
GENIMG_EXPORT(fprop, bf16, __nv_bfloat16)
GENIMG_EXPORT(fprop, fp16, __half)
GENIMG_EXPORT(dgrad, bf16, __nv_bfloat16)
GENIMG_EXPORT(dgrad, fp16, __half)
#undef GENIMG_EXPORT
