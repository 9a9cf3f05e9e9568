// The types in the signatures of launchers: streams, errors, half-precision numbers. The emulated
// build has its own, so that it needs no CUDA installation.
#pragma once

#ifdef SIMT_EMULATED
#include "emulated_types.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#endif
