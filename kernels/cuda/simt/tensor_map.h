// Tensor maps, which describe a tensor in memory to TMA loads; the host makes them.
#pragma once

#include "types.h"

#ifndef SIMT_EMULATED
#include <cuda.h>
#endif

namespace simt {

// The layout of rows of 128 bytes in shared memory: unchanged, or with 16-byte pieces permuted.
enum class Swizzle { kNone, k128 };

// Dense memory of 2-byte elements, innermost dimension first. Pitches are bytes from one index of
// dimension i + 1 to the next, multiples of 16. A load reads a box; elements outside are 0.
struct TensorView {
  const void* base;
  int rank;  // 2 to 4
  uint32_t sizes[4];
  uint64_t pitches[3];
  uint32_t box[4];
  Swizzle swizzle;
};

struct alignas(64) TensorMap {
  uint64_t words[16];
};

#ifdef SIMT_EMULATED

cudaError_t make_tensor_map(TensorMap* map, const TensorView& view);

#else

// Gets the driver's function through the runtime, so that nothing links with the driver.
inline cudaError_t make_tensor_map(TensorMap* map, const TensorView& view) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                              12000, cudaEnableDefault, &found);
#else
  const cudaError_t status =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found);
#endif
  if (status != cudaSuccess) return status;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  cuuint64_t sizes[4], pitches[3];
  cuuint32_t box[4], steps[4] = {1, 1, 1, 1};
  for (int i = 0; i < view.rank; ++i) {
    sizes[i] = view.sizes[i];
    box[i] = view.box[i];
    if (i + 1 < view.rank) pitches[i] = view.pitches[i];
  }
  const CUresult made = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
      reinterpret_cast<CUtensorMap*>(map), CU_TENSOR_MAP_DATA_TYPE_UINT16,
      static_cast<cuuint32_t>(view.rank), const_cast<void*>(view.base), sizes, pitches, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE,
      view.swizzle == Swizzle::k128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return made == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

#endif

}  // namespace simt
