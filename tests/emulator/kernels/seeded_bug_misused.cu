// Hopper's instructions used wrongly, one rule at a time: the emulator must name the rule. Not for
// a GPU.
#include "hopper.h"
#include "testing.h"

namespace {

enum Misuse {
  kNone,
  kMisalignedBarrier,
  kGlobalBarrier,
  kUninitialisedBarrier,
  kUnorderedInit,
  kTooManyArrivals,
  kMissingArrival,
  kMissingBytes,
  kUnawaitedLoad,
  kReadEarly,
  kMisalignedTarget,
  kTargetPastEnd,
  kOtherRank,
  kFewThreads,
  kOtherOperands,
  kOtherLine,
  kOperandOutside,
  kUnwrittenOperand,
  kOneWarpGoesOn,
  kUnwrittenColumns,
};

constexpr int kThreads = 160;

__global__ void __launch_bounds__(SIMT_HOPPER_THREADS(kThreads))
    misuse_kernel(const __grid_constant__ simt::TensorMap map, float* out, int misuse) {
#ifdef SIMT_HOPPER
  constexpr int kBoxBytes = 2 * 64 * 8;
  SIMT_DYN_SHARED(unsigned char, raw);
  SIMT_SHARED(uint64_t, barriers, [2]);
  SIMT_SHARED(__nv_bfloat16, operand, [2][64][8]);
  SIMT_SHARED(__nv_bfloat16, wide, [2][128][8]);
  unsigned char* const tile = raw + (1024 - simt::shared_address(raw) % 1024) % 1024;
  const int thread = threadIdx.x;
  if (thread == 0) {
    simt::mbarrier_init(&barriers[0], 1);
    simt::mbarrier_init_fence();
    if (misuse == kMisalignedBarrier) {
      simt::mbarrier_init(reinterpret_cast<uint64_t*>(raw + 4), 1);
    }
    if (misuse == kGlobalBarrier) simt::mbarrier_init(reinterpret_cast<uint64_t*>(out), 1);
  }
  if (misuse == kUnorderedInit && thread == 33) simt::mbarrier_arrive(&barriers[0]);
  __syncthreads();

  if (thread == 0) {
    if (misuse == kUninitialisedBarrier) simt::mbarrier_arrive(&barriers[1]);
    if (misuse == kTooManyArrivals) {  // in a phase that waits for bytes
      simt::mbarrier_arrive_expect(&barriers[0], 16);
      simt::mbarrier_arrive(&barriers[0]);
    }
    if (misuse != kMissingArrival) {
      simt::mbarrier_arrive_expect(&barriers[0],
                                   misuse == kMissingBytes ? 2 * kBoxBytes : kBoxBytes);
    }
    unsigned char* const to = misuse == kMisalignedTarget ? tile + 128
                              : misuse == kTargetPastEnd  ? tile + 1024
                                                          : tile;
    if (misuse == kOtherRank) {
      simt::tma_load(to, map, &barriers[0], 0, 0, 0, 0);
    } else {
      simt::tma_load(to, map, &barriers[0], 0, 0);
    }
  }
  if (misuse == kUnawaitedLoad) return;
  if (misuse == kReadEarly && thread == 0) out[0] = static_cast<float>(tile[0]);
  simt::mbarrier_wait(&barriers[0], 0);

  if (misuse != kUnwrittenOperand && thread < 128) {
    for (int i = 0; i < 8; ++i) operand[thread / 64][thread % 64][i] = __nv_bfloat16{};
  }
  if (thread < (misuse == kUnwrittenColumns ? 127 : 128)) {
    for (int i = 0; i < 16; ++i) wide[i / 8][thread][i % 8] = __nv_bfloat16{};
  }
  simt::fence_proxy_async();
  __syncthreads();
  if (misuse != kFewThreads && thread >= 128) return;
  float acc[32] = {}, wide_acc[64] = {};
  simt::wgmma_fence(acc);
  const uint64_t a = simt::matrix_descriptor(operand, simt::Swizzle::kNone, 128, 1024);
  const uint64_t b = misuse == kOtherOperands && thread == 5 ? a + 1
                     : misuse == kOperandOutside             ? a + 16
                                                             : a;
  if (misuse == kOtherLine && thread >= 64) {
    simt::wgmma_m64n64k16<false>(acc, a, b, __nv_bfloat16{});
  } else {
    simt::wgmma_m64n64k16<false>(acc, a, b, __nv_bfloat16{});
  }
  if (misuse == kNone || misuse == kUnwrittenColumns) {
    simt::wgmma_m64n128k16<false>(wide_acc, a,
                                  simt::matrix_descriptor(wide, simt::Swizzle::kNone, 128, 2048),
                                  __nv_bfloat16{});
  }
  simt::wgmma_commit();
  simt::wgmma_wait<0>(acc);
  if (misuse == kOneWarpGoesOn && thread == 0) operand[0][0][0] = __nv_bfloat16{};
  out[thread] = acc[0] + wide_acc[0];
#endif
}

}  // namespace

SIMT_EXPORT int seeded_bug_misuse(const __nv_bfloat16* x, float* out, int64_t misuse) {
  const simt::TensorView view = {x, 2, {64, 8}, {128}, {64, 8}, simt::Swizzle::k128};
  return simt::guarded([=] {
    simt::TensorMap map;
    const cudaError_t status = simt::make_tensor_map(&map, view);
    if (status != cudaSuccess) return status;
    return simt::launch(misuse_kernel, 1, kThreads, 2047, nullptr, map, out, misuse);
  });
}

// Returns whether a map with one error is refused.
SIMT_EXPORT int seeded_bug_map_refused(const __nv_bfloat16* x, int64_t wrong) {
  simt::TensorView view = {x, 2, {64, 8}, {128}, {64, 8}, simt::Swizzle::k128};
  if (wrong == 1) view.base = x + 1;
  if (wrong == 2) view.pitches[0] = 130;
  if (wrong == 3) view.box[0] = 72;
  if (wrong == 4) view.box[1] = 257;
  if (wrong == 5) view.rank = 1;
  if (wrong == 6) view.sizes[1] = 0;
  simt::TensorMap map;
  return simt::make_tensor_map(&map, view) != cudaSuccess;
}
