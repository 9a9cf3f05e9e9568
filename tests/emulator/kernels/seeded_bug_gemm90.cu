// c[M][N] = a[M][K] b[K][N] as Hopper does it: a thread of one warpgroup loads tiles by TMA into a
// ring of three stages, the other one multiplies them by wgmma, with most of the registers; right
// with bug = 0.
#include "hopper.h"
#include "testing.h"

namespace {

constexpr int kTile = 64, kStages = 3, kConsumers = 128, kThreads = 2 * kConsumers;
constexpr int kTileBytes = 2 * kTile * kTile;

template <typename T>
__global__ void __launch_bounds__(SIMT_HOPPER_THREADS(kThreads), 1)
    gemm90_kernel(const __grid_constant__ simt::TensorMap a_map,
                  const __grid_constant__ simt::TensorMap b_map, float* c, int rows, int columns,
                  int depth, int bug) {
#ifdef SIMT_HOPPER
  SIMT_DYN_SHARED(unsigned char, raw);
  SIMT_SHARED(uint64_t, full, [kStages]);
  SIMT_SHARED(uint64_t, empty, [kStages]);
  unsigned char* const tiles = raw + (1024 - simt::shared_address(raw) % 1024) % 1024;
  const auto a_of = [=](int stage) { return tiles + 2 * stage * kTileBytes; };
  const auto b_of = [=](int stage) { return a_of(stage) + kTileBytes; };
  const int thread = threadIdx.x, row0 = blockIdx.y * kTile, column0 = blockIdx.x * kTile;
  const int steps = (depth + kTile - 1) / kTile;
  if (thread == 0) {
    for (int i = 0; i < kStages; ++i) {
      simt::mbarrier_init(&full[i], 1);
      simt::mbarrier_init(&empty[i], kConsumers / 32);
    }
    if (bug != 37) simt::mbarrier_init_fence();
  }
  __syncthreads();

  if (thread >= kConsumers) {
    simt::lower_registers<40>();
    if (thread != kConsumers) return;
    for (int step = 0; step < steps; ++step) {
      const int stage = step % kStages, round = step / kStages;
      if (round > 0 && bug != 31) simt::mbarrier_wait(&empty[stage], (round - 1) & 1);
      simt::mbarrier_arrive_expect(&full[stage], bug == 32 ? kTileBytes : 2 * kTileBytes);
      simt::tma_load(a_of(stage), a_map, &full[stage], step * kTile, row0);
      simt::tma_load(b_of(stage), b_map, &full[stage], column0, step * kTile);
    }
    return;
  }

  simt::raise_registers<232>();
  float acc[32] = {};
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    if (bug != 33) simt::mbarrier_wait(&full[stage], step / kStages & 1);
    const uint64_t a = simt::matrix_descriptor(a_of(stage), simt::Swizzle::k128, 1024);
    const uint64_t b = simt::matrix_descriptor(b_of(stage), simt::Swizzle::k128, 1024);
    simt::wgmma_fence(acc);
#pragma unroll
    for (int k = 0; k < kTile; k += 16) {
      simt::wgmma_m64n64k16<true>(acc, a + k * 2 / 16, b + k * 128 / 16, T{});
    }
    simt::wgmma_commit();
    if (bug == 34 && thread % 32 == 0) simt::mbarrier_arrive(&empty[stage]);
    simt::wgmma_wait<0>(acc);
    if (bug != 34 && thread % 32 == 0) simt::mbarrier_arrive(&empty[stage]);
  }
  for (int i = 0; i < 32; ++i) {
    const int row = row0 + thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2);
    const int column = column0 + 8 * (i / 4) + 2 * (thread % 4) + i % 2;
    if (row < rows && column < columns) c[row * columns + column] = acc[i];
  }
#endif
}

// d[64][64] = a[64][16] b[64][16]^T, which the threads write to shared memory themselves.
// ptxas warns about bugs 35 and 36, so that they are kernels of their own.
template <int kBug>
__global__ void __launch_bounds__(SIMT_HOPPER_THREADS(kConsumers))
    staged_kernel(const __nv_bfloat16* a, const __nv_bfloat16* b, float* d, int bug) {
#ifdef SIMT_HOPPER
  SIMT_SHARED(__nv_bfloat16, tiles, [2][2][kTile][8]);  // operand, half of the depth, row
  const int thread = threadIdx.x, row = thread % kTile, half = thread / kTile;
  for (int k = 0; k < 8; ++k) {
    tiles[0][half][row][k] = a[row * 16 + half * 8 + k];
    tiles[1][half][row][k] = b[row * 16 + half * 8 + k];
  }
  if (bug != 38 && bug != 39) simt::fence_proxy_async();
  __syncthreads();
  if (bug == 39) simt::fence_proxy_async();
  float acc[32] = {};
  if (kBug != 36) simt::wgmma_fence(acc);
  simt::wgmma_m64n64k16<false>(
      acc, simt::matrix_descriptor(tiles[0], simt::Swizzle::kNone, 128, 16 * kTile),
      simt::matrix_descriptor(tiles[1], simt::Swizzle::kNone, 128, 16 * kTile), __nv_bfloat16{});
  simt::wgmma_commit();
  float early = 0;
  if (bug == 40) early = acc[0];
  if (bug == 41) tiles[0][half][row][0] = __nv_bfloat16{};
  if (kBug != 35) simt::wgmma_wait<0>(acc);
  if (bug == 40) acc[0] = early;
  for (int i = 0; i < 32; ++i) {
    const int d_row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2);
    d[d_row * kTile + 8 * (i / 4) + 2 * (thread % 4) + i % 2] = acc[i];
  }
#endif
}

template <typename T>
int gemm90(const T* a, const T* b, float* c, int64_t rows, int64_t columns, int64_t depth,
           int64_t bug) {
  const auto view = [](const T* base, int64_t outer, int64_t inner) {
    return simt::TensorView{base,
                            2,
                            {static_cast<uint32_t>(inner), static_cast<uint32_t>(outer)},
                            {static_cast<uint64_t>(2 * inner)},
                            {kTile, kTile},
                            simt::Swizzle::k128};
  };
  return simt::guarded([=] {
    simt::TensorMap a_map, b_map;
    cudaError_t status = simt::make_tensor_map(&a_map, view(a, rows, depth));
    if (status == cudaSuccess) status = simt::make_tensor_map(&b_map, view(b, depth, columns));
    if (status != cudaSuccess) return status;
    const dim3 grid(static_cast<unsigned>((columns + kTile - 1) / kTile),
                    static_cast<unsigned>((rows + kTile - 1) / kTile));
    return simt::launch(gemm90_kernel<T>, grid, kThreads, 2 * kStages * kTileBytes + 1024, nullptr,
                        a_map, b_map, c, rows, columns, depth, bug);
  });
}

}  // namespace

SIMT_EXPORT int seeded_bug_gemm90_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c,
                                       int64_t rows, int64_t columns, int64_t depth, int64_t bug) {
  return gemm90(a, b, c, rows, columns, depth, bug);
}

SIMT_EXPORT int seeded_bug_gemm90_fp16(const __half* a, const __half* b, float* c, int64_t rows,
                                       int64_t columns, int64_t depth, int64_t bug) {
  return gemm90(a, b, c, rows, columns, depth, bug);
}

SIMT_EXPORT int seeded_bug_staged(const __nv_bfloat16* a, const __nv_bfloat16* b, float* d,
                                  int64_t bug) {
  return simt::guarded([=] {
    const auto kernel = bug == 35   ? staged_kernel<35>
                        : bug == 36 ? staged_kernel<36>
                                    : staged_kernel<0>;
    return simt::launch(kernel, 1, kConsumers, 0, nullptr, a, b, d, bug);
  });
}
