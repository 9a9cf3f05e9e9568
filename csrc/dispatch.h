// dtype -> template.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#ifdef GENIMG_WITH_CUDA
#include "../kernels/cuda/simt/types.h"
#endif

namespace genimg {

[[noreturn]] inline void refuse_dtype(const char* op, at::ScalarType dtype, const char* served) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, op, ": ", dtype, " is not supported, only ", served);
}

inline void check_cpu_dtype(const char* op, at::ScalarType dtype) {
  if (dtype != at::kFloat && dtype != at::kBFloat16)
    refuse_dtype(op, dtype, "float32 and bfloat16");
}

#ifdef GENIMG_WITH_CUDA

// Calls run(T{}) for a dtype that the CUDA kernels support.
template <typename Run>
void for_cuda_dtype(const char* op, at::ScalarType dtype, Run run) {
  switch (dtype) {
    case at::kFloat:
      return run(float{});
    case at::kHalf:
      return run(__half{});
    case at::kBFloat16:
      return run(__nv_bfloat16{});
    default:
      refuse_dtype(op, dtype, "float32, float16 and bfloat16");
  }
}

#endif

}  // namespace genimg
