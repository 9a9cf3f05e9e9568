// Launchers of the LeakyReLU kernels. Formula, dtypes and source: genimg/ops/leaky_relu.py.
#pragma once

#include <cstdint>

#include "simt/types.h"

namespace genimg::cuda {

// T is float, __half or __nv_bfloat16. Dense arrays of n elements in the same order.
template <typename T>
cudaError_t launch_leaky_relu_fwd(const T* x, T* y, int64_t n, float slope, cudaStream_t stream);

template <typename T>
cudaError_t launch_leaky_relu_bwd(const T* grad_y, const T* x, T* grad_x, int64_t n, float slope,
                                  cudaStream_t stream);

}  // namespace genimg::cuda
