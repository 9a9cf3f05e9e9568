// Launchers of the reparameterisation and KL kernels. Formula: genimg/ops/reparam_kl.py; the noise:
// genimg/reference/reparam_kl.py.
#pragma once

#include <cstdint>

#include "simt/types.h"

namespace genimg::cuda {

// T is float, __half or __nv_bfloat16. mu, logvar and z are dense [rows, row_size]; seed is the key
// and the offset, on the device; kl is [rows].
template <typename T>
cudaError_t launch_reparam_kl_fwd(const T* mu, const T* logvar, const int64_t* seed, T* z,
                                  float* kl, int64_t rows, int64_t row_size, cudaStream_t stream);

// Draws the noise again.
template <typename T>
cudaError_t launch_reparam_kl_bwd(const T* grad_z, const float* grad_kl, const T* mu,
                                  const T* logvar, const int64_t* seed, T* grad_mu, T* grad_logvar,
                                  int64_t rows, int64_t row_size, cudaStream_t stream);

}  // namespace genimg::cuda
