// A kernel for each wrapper of hopper.h, as contract_portable.cu has them for simt.h.
#include "hopper.h"
#include "testing.h"

namespace {

constexpr int kSide = 64, kTileBytes = 2 * kSide * kSide;

#ifdef SIMT_HOPPER

// The first multiple of 1024; the launch has reserved the room.
__device__ __forceinline__ unsigned char* aligned(unsigned char* raw) {
  return raw + (1024 - simt::shared_address(raw) % 1024) % 1024;
}

__device__ __forceinline__ void start(uint64_t* barrier, unsigned arrivals) {
  if (threadIdx.x == 0) {
    simt::mbarrier_init(barrier, arrivals);
    simt::mbarrier_init_fence();
  }
  __syncthreads();
}

#endif

// Neighbours exchange values in phases of alternating parity. On a new mbarrier, parity 1 is over.
__global__ void __launch_bounds__(SIMT_HOPPER_THREADS(64)) mbarrier_kernel(int* out, int phases) {
#ifdef SIMT_HOPPER
  SIMT_SHARED(uint64_t, barrier, [1]);
  SIMT_SHARED(int, values, [2][64]);
  const int thread = threadIdx.x;
  start(barrier, 64);
  simt::mbarrier_wait(barrier, 1);
  int value = thread;
  for (int phase = 0; phase < phases; ++phase) {
    values[phase % 2][thread] = value;
    simt::mbarrier_arrive(barrier);
    simt::mbarrier_wait(barrier, phase % 2);
    value = values[phase % 2][(thread + 1) % 64] + 1;
  }
  out[thread] = value;
#endif
}

// Shared memory after a load of an 8-row box from (x, y), byte for byte.
__global__ void __launch_bounds__(SIMT_HOPPER_THREADS(64))
    tma_kernel(const __grid_constant__ simt::TensorMap map, int x, int y, uint16_t* out) {
#ifdef SIMT_HOPPER
  SIMT_DYN_SHARED(unsigned char, raw);
  SIMT_SHARED(uint64_t, barrier, [1]);
  const auto* const tile = reinterpret_cast<const uint16_t*>(aligned(raw));
  start(barrier, 1);
  if (threadIdx.x == 0) {
    simt::mbarrier_arrive_expect(barrier, 16 * kSide);
    simt::tma_load(aligned(raw), map, barrier, x, y);
  }
  simt::mbarrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < 8 * kSide; i += 64) out[i] = tile[i];
#endif
}

// The same of a box of 64 x 1 x 1 x 8.
__global__ void __launch_bounds__(SIMT_HOPPER_THREADS(64))
    tma_4d_kernel(const __grid_constant__ simt::TensorMap map, int x, int y, int z, int w,
                  uint16_t* out) {
#ifdef SIMT_HOPPER
  SIMT_DYN_SHARED(unsigned char, raw);
  SIMT_SHARED(uint64_t, barrier, [1]);
  const auto* const tile = reinterpret_cast<const uint16_t*>(aligned(raw));
  start(barrier, 1);
  if (threadIdx.x == 0) {
    simt::mbarrier_arrive_expect(barrier, 16 * kSide);
    simt::tma_load(aligned(raw), map, barrier, x, y, z, w);
  }
  simt::mbarrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < 8 * kSide; i += 64) out[i] = tile[i];
#endif
}

// A patch of 8x8 pixels of 10x18, as conv/sm90.h has them: 16 bytes a pixel, one
// plane for each eight channels.
constexpr int kPitch = 18 * 16, kPlane = 10 * kPitch;

// d[64][kColumns] = a[64][64] b, by TMA and wgmma, and out[128][kColumns / 2] the sums as the
// threads hold them. a is swizzled, or the patch; b is [k][column], or [column][k] without kBByK.
template <typename T, int kColumns, bool kAIsPatch, bool kBByK>
__global__ void __launch_bounds__(SIMT_HOPPER_THREADS(128))
    wgmma_kernel(const __grid_constant__ simt::TensorMap a_map,
                 const __grid_constant__ simt::TensorMap b_map, const T* a, float* out) {
#ifdef SIMT_HOPPER
  constexpr int kPatch = kPitch + 3 * 16;  // of its first pixel
  constexpr int kParts = kColumns / kSide;
  SIMT_DYN_SHARED(unsigned char, raw);
  SIMT_SHARED(uint64_t, barrier, [1]);
  unsigned char* const b_tile = aligned(raw);
  unsigned char* const a_tile = b_tile + kParts * kTileBytes;
  const int thread = threadIdx.x;
  start(barrier, 1);
  if (thread == 0) {
    simt::mbarrier_arrive_expect(barrier, (kAIsPatch ? kParts : kParts + 1) * kTileBytes);
    for (int part = 0; part < kParts; ++part) {
      simt::tma_load(b_tile + part * kTileBytes, b_map, barrier, kBByK ? part * kSide : 0,
                     kBByK ? 0 : part * kSide);
    }
    if (!kAIsPatch) simt::tma_load(a_tile, a_map, barrier, 0, 0);
  }
  if (kAIsPatch) {
    for (int i = thread; i < kSide * kSide; i += 128) {
      const int row = i / kSide, k = i % kSide;
      const int at = kPatch + row / 8 * kPitch + k / 8 * kPlane + row % 8 * 16 + k % 8 * 2;
      *reinterpret_cast<T*>(a_tile + at) = a[i];
    }
    simt::fence_proxy_async();
    __syncthreads();
  }
  simt::mbarrier_wait(barrier, 0);
  const uint64_t a_part =
      kAIsPatch ? simt::matrix_descriptor(a_tile + kPatch, simt::Swizzle::kNone, kPitch, kPlane)
                : simt::matrix_descriptor(a_tile, simt::Swizzle::k128, 1024);
  const uint64_t b_part = simt::matrix_descriptor(b_tile, simt::Swizzle::k128, 1024, kTileBytes);
  float acc[kColumns / 2];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) acc[i] = 1;
  simt::wgmma_fence(acc);
#pragma unroll
  for (int k = 0; k < kSide; k += 16) {
    const uint64_t a_step = a_part + (kAIsPatch ? k / 8 * kPlane : k * 2) / 16;
    const uint64_t b_step = b_part + k * (kBByK ? 128 : 2) / 16;
    if constexpr (kColumns == 128) {
      simt::wgmma_m64n128k16<kBByK>(acc, a_step, b_step, T{});
    } else {
      simt::wgmma_m64n64k16<kBByK>(acc, a_step, b_step, T{});
    }
  }
  simt::wgmma_commit();
  simt::wgmma_wait<0>(acc);
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) out[kColumns / 2 * thread + i] = acc[i];
#endif
}

simt::TensorView matrix(const void* base, uint32_t rows, uint32_t columns, uint32_t box_rows,
                        simt::Swizzle swizzle) {
  return {base, 2, {columns, rows}, {2ull * columns}, {kSide, box_rows}, swizzle};
}

template <typename T, int kColumns>
cudaError_t multiply(const T* a, const T* b, float* out, bool a_is_patch, bool b_by_k) {
  simt::TensorMap a_map, b_map;
  const simt::Swizzle swizzle = simt::Swizzle::k128;
  cudaError_t status = simt::make_tensor_map(&a_map, matrix(a, kSide, kSide, kSide, swizzle));
  if (status != cudaSuccess) return status;
  status = simt::make_tensor_map(&b_map, b_by_k ? matrix(b, kSide, kColumns, kSide, swizzle)
                                                : matrix(b, kColumns, kSide, kSide, swizzle));
  if (status != cudaSuccess) return status;
  const auto kernel = a_is_patch ? b_by_k ? wgmma_kernel<T, kColumns, true, true>
                                          : wgmma_kernel<T, kColumns, true, false>
                      : b_by_k   ? wgmma_kernel<T, kColumns, false, true>
                                 : wgmma_kernel<T, kColumns, false, false>;
  return simt::launch(kernel, 1, 128, 1024 + kColumns / kSide * kTileBytes + kSide / 8 * kPlane,
                      nullptr, a_map, b_map, a, out);
}

template <typename T>
int multiply(const T* a, const T* b, float* out, int64_t columns, int64_t a_is_patch,
             int64_t b_by_k) {
  return simt::guarded([=] {
    return (columns == 128 ? multiply<T, 128> : multiply<T, 64>)(a, b, out, a_is_patch != 0,
                                                                 b_by_k != 0);
  });
}

}  // namespace

SIMT_EXPORT int contract_mbarrier(int* out, int64_t phases) {
  return simt::guarded(
      [=] { return simt::launch(mbarrier_kernel, 1, 64, 0, nullptr, out, phases); });
}

SIMT_EXPORT int contract_tma(const uint16_t* tensor, uint16_t* out, int64_t rows, int64_t columns,
                             int64_t x, int64_t y, int64_t swizzled) {
  return simt::guarded([=] {
    simt::TensorMap map;
    const cudaError_t status = simt::make_tensor_map(
        &map, matrix(tensor, static_cast<uint32_t>(rows), static_cast<uint32_t>(columns), 8,
                     swizzled != 0 ? simt::Swizzle::k128 : simt::Swizzle::kNone));
    if (status != cudaSuccess) return status;
    return simt::launch(tma_kernel, 1, 64, 1024 + 16 * kSide, nullptr, map, x, y, out);
  });
}

// Loads a box of a tensor [w][z][y][x].
SIMT_EXPORT int contract_tma_4d(const uint16_t* tensor, uint16_t* out, const int64_t* sizes,
                                int64_t x, int64_t y, int64_t z, int64_t w) {
  return simt::guarded([=] {
    simt::TensorView view = {tensor, 4, {}, {}, {kSide, 1, 1, 8}, simt::Swizzle::k128};
    uint64_t pitch = 2;
    for (int i = 0; i < 4; ++i) {
      view.sizes[i] = static_cast<uint32_t>(sizes[3 - i]);
      pitch *= view.sizes[i];
      if (i < 3) view.pitches[i] = pitch;
    }
    simt::TensorMap map;
    const cudaError_t status = simt::make_tensor_map(&map, view);
    if (status != cudaSuccess) return status;
    return simt::launch(tma_4d_kernel, 1, 64, 1024 + 16 * kSide, nullptr, map, x, y, z, w, out);
  });
}

SIMT_EXPORT int contract_wgmma_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* out,
                                    int64_t columns, int64_t a_is_patch, int64_t b_by_k) {
  return multiply(a, b, out, columns, a_is_patch, b_by_k);
}
SIMT_EXPORT int contract_wgmma_fp16(const __half* a, const __half* b, float* out, int64_t columns,
                                    int64_t a_is_patch, int64_t b_by_k) {
  return multiply(a, b, out, columns, a_is_patch, b_by_k);
}
