// Hopper's own instructions: mbarriers, TMA loads, wgmma. They exist for sm_90a alone: a kernel's
// body that uses them is in #ifdef SIMT_HOPPER, and launchers call runs_hopper() first.
#pragma once

#include "simt.h"
#include "tensor_map.h"

#ifdef SIMT_EMULATED
#include "emulated_hopper.h"
#else

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SIMT_HOPPER
// For __launch_bounds__: a binary for another architecture has an empty kernel, and one warp.
#define SIMT_HOPPER_THREADS(threads) threads
#else
#define SIMT_HOPPER_THREADS(threads) 32
#endif

namespace simt {

__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

// Makes the initialised mbarriers visible to TMA; the thread that initialised them calls it.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// The phase ends when all threads have arrived and `bytes` more bytes have come by TMA.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// Returns when the phase of this parity has ended; the first phase has parity 0. With
// SIMT_WAIT_LIMIT (tests), a wait that would never end is an error.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, unsigned parity) {
  unsigned done = 0;
#ifdef SIMT_WAIT_LIMIT
  unsigned tries = 0;
#endif
  do {
#ifdef SIMT_WAIT_LIMIT
    if (++tries == SIMT_WAIT_LIMIT) __trap();
#endif
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!done);
}

// Between a thread's writes to shared memory that wgmma or TMA will access and the barrier.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Loads the map's box from (x, y), for the current phase of `barrier`. The map is a
// __grid_constant__ argument of the kernel.
__device__ __forceinline__ void tma_load(void* to, const TensorMap& map, uint64_t* barrier, int x,
                                         int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y)
      : "memory");
}

__device__ __forceinline__ void tma_load(void* to, const TensorMap& map, uint64_t* barrier, int x,
                                         int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

// Keeps the compiler from moving accesses to the sums past this point.
template <typename Sums>
__device__ __forceinline__ void pin(Sums& sums) {
#pragma unroll
  for (auto& sum : sums) {
    if constexpr (sizeof sum == sizeof(float)) {
      asm volatile("" : "+f"(sum)::"memory");
    } else {
      pin(sum);
    }
  }
}

// Required before the first wgmma and again after each wait. The sums, of one wgmma or an array of
// them, belong to the tensor cores from here to the next wait.
template <typename Sums>
__device__ __forceinline__ void wgmma_fence(Sums& sums) {
  pin(sums);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits for all groups but the newest `kNewest`; the sums belong to these groups.
template <int kNewest, typename Sums>
__device__ __forceinline__ void wgmma_wait(Sums& sums) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kNewest) : "memory");
  pin(sums);
}

// Sets the registers per thread of this warpgroup from here on.
template <int kRegisters>
__device__ __forceinline__ void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#define SIMT_SUM8(i)                                                                    \
  "+f"(acc[i]), "+f"(acc[i + 1]), "+f"(acc[i + 2]), "+f"(acc[i + 3]), "+f"(acc[i + 4]), \
      "+f"(acc[i + 5]), "+f"(acc[i + 6]), "+f"(acc[i + 7])
#define SIMT_SUM32(i) SIMT_SUM8(i), SIMT_SUM8(i + 8), SIMT_SUM8(i + 16), SIMT_SUM8(i + 24)
#define SIMT_NAMES32                                                                      \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SIMT_NAMES64                                                                             \
  SIMT_NAMES32                                                                                   \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SIMT_WGMMA(columns, T, name, names, operands, ...)                                        \
  template <bool kBByK>                                                                           \
  __device__ __forceinline__ void wgmma_m64n##columns##k16(float (&acc)[columns / 2], uint64_t a, \
                                                           uint64_t b, T) {                       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." name "." name " {" names \
                 "}, " operands ";"                                                               \
                 : __VA_ARGS__                                                                    \
                 : "l"(a), "l"(b), "n"(kBByK ? 1 : 0));                                           \
  }
#define SIMT_WGMMA64(T, name) \
  SIMT_WGMMA(64, T, name, SIMT_NAMES32, "%32, %33, 1, 1, 1, 0, %34", SIMT_SUM32(0))
#define SIMT_WGMMA128(T, name) \
  SIMT_WGMMA(128, T, name, SIMT_NAMES64, "%64, %65, 1, 1, 1, 0, %66", SIMT_SUM32(0), SIMT_SUM32(32))
// acc[64][columns] += a[64][16] b[16][columns], asynchronously, by the 128 threads of a warpgroup:
// element i of its thread t is in row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2) and column
// 8 (i / 4) + 2 (t % 4) + i % 2. a and b are descriptors; a is [row][k], b is [column][k], or
// [k][column] with kBByK.
SIMT_WGMMA64(__nv_bfloat16, "bf16")
SIMT_WGMMA64(__half, "f16")
SIMT_WGMMA128(__nv_bfloat16, "bf16")
SIMT_WGMMA128(__half, "f16")
#undef SIMT_WGMMA128
#undef SIMT_WGMMA64
#undef SIMT_WGMMA
#undef SIMT_NAMES64
#undef SIMT_NAMES32
#undef SIMT_SUM32
#undef SIMT_SUM8

// Whether the current device has a binary of this kernel with a body.
template <typename... P>
bool runs_hopper(void (*kernel)(P...), int threads) {
  int device = 0, major = 0;
  cudaFuncAttributes attributes;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      major != 9 ||
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  return attributes.maxThreadsPerBlock >= threads;
}

}  // namespace simt

#endif  // SIMT_EMULATED

namespace simt {

// An operand of wgmma in shared memory, in units of 8x8 matrices, 16 bytes a row. Steps are bytes.
//   kNone, by rows: element (row, k) lies at row / 8 * row_step + k / 8 * depth_step +
//     row % 8 * 16 + k % 8 * 2 from `start`, which is aligned to 16 bytes.
//   k128, by rows: at row / 8 * row_step + row % 8 * 128 + k * 2, swizzled.
//   k128, by k: element (k, column) at k / 8 * row_step + k % 8 * 128 + column * 2, swizzled;
//     columns from the 64th on depth_step further.
// Swizzled: bits 4 to 6 of an address are exchanged by its bits 7 to 9, so that rows of 128 bytes
// begin at multiples of 1024. Adding bytes / 16 to a descriptor moves its start.
__device__ __forceinline__ uint64_t matrix_descriptor(const void* start, Swizzle swizzle,
                                                      unsigned row_step, unsigned depth_step = 16) {
  return static_cast<uint64_t>(shared_address(start) >> 4 & 0x3fff) |
         static_cast<uint64_t>(depth_step >> 4 & 0x3fff) << 16 |
         static_cast<uint64_t>(row_step >> 4 & 0x3fff) << 32 |
         static_cast<uint64_t>(swizzle == Swizzle::k128 ? 1 : 0) << 62;
}

}  // namespace simt
