// Reparameterisation and KL divergence over a range of rows. Formula: genimg/ops/reparam_kl.py; the
// noise: genimg/reference/reparam_kl.py.
#pragma once

#include <cstdint>

#include "isa.h"

namespace genimg::cpu {

// Rows row_begin <= n < row_end of contiguous [rows, row_size] arrays: z and kl[n].
GENIMG_DECLARE_CPU_KERNEL(reparam_kl_fwd_f32, const float* mu, const float* logvar, uint64_t key,
                          uint64_t offset, float* z, float* kl, int64_t row_begin, int64_t row_end,
                          int64_t row_size)
// mu, logvar and z as bfloat16 bit patterns.
GENIMG_DECLARE_CPU_KERNEL(reparam_kl_fwd_bf16, const uint16_t* mu, const uint16_t* logvar,
                          uint64_t key, uint64_t offset, uint16_t* z, float* kl, int64_t row_begin,
                          int64_t row_end, int64_t row_size)

// The same rows of grad_mu and grad_logvar, the noise drawn again.
GENIMG_DECLARE_CPU_KERNEL(reparam_kl_bwd_f32, const float* grad_z, const float* grad_kl,
                          const float* mu, const float* logvar, uint64_t key, uint64_t offset,
                          float* grad_mu, float* grad_logvar, int64_t row_begin, int64_t row_end,
                          int64_t row_size)
GENIMG_DECLARE_CPU_KERNEL(reparam_kl_bwd_bf16, const uint16_t* grad_z, const float* grad_kl,
                          const uint16_t* mu, const uint16_t* logvar, uint64_t key, uint64_t offset,
                          uint16_t* grad_mu, uint16_t* grad_logvar, int64_t row_begin,
                          int64_t row_end, int64_t row_size)

}  // namespace genimg::cpu
