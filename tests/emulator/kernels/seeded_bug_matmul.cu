// c[M][N] = a[M][K] b[K][N] by cp.async in two stages, ldmatrix and mma.sync; right with bug = 0.
#include "simt.h"
#include "testing.h"

namespace {

constexpr int kTile = 32, kPitch = kTile + 8, kThreads = 128;

template <typename T>
__global__ void matmul_kernel(const T* a, const T* b, float* c, int rows, int columns, int depth,
                              int bug) {
  SIMT_SHARED(T, a_tile, [2][kTile][kPitch]);
  SIMT_SHARED(T, b_tile, [2][kTile][kPitch]);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int row0 = blockIdx.y * kTile, column0 = blockIdx.x * kTile;
  const int load_row = thread / 4, load_column = thread % 4 * 8;
  const auto load = [&](int stage, int k0) {
    const int a_row = row0 + load_row, a_k = k0 + load_column;
    simt::cp_async_16(&a_tile[stage][load_row][load_column], a + a_row * depth + a_k,
                      bug == 10 || (a_row < rows && a_k < depth));
    const int b_k = k0 + load_row, b_column = column0 + load_column;
    simt::cp_async_16(&b_tile[stage][load_row][load_column], b + b_k * columns + b_column,
                      b_k < depth && b_column < columns);
  };
  float acc[2][4] = {};
  const int warp_row = warp / 2 * 16, warp_column = warp % 2 * 16;
  load(0, 0);
  simt::cp_async_commit();
  for (int k0 = 0, stage = 0; k0 < depth; k0 += kTile, stage ^= 1) {
    if (k0 + kTile < depth) load(stage ^ 1, k0 + kTile);
    simt::cp_async_commit();
    if (bug == 5) {
      simt::cp_async_wait<2>();
    } else {
      simt::cp_async_wait<1>();
    }
    if (bug != 17) __syncthreads();
    for (int k = 0; k < kTile; k += 16) {
      uint32_t a_part[4], b_part[4];
      const int row = bug == 15 ? lane % 16 ^ 1 : lane % 16;
      simt::ldmatrix_x4(a_part, &a_tile[stage][warp_row + row][k + lane / 16 * 8]);
      simt::ldmatrix_x4_trans(b_part, &b_tile[stage][k + lane % 16][warp_column + lane / 16 * 8]);
      for (int half = 0; half < 2; ++half) {
        const uint32_t b_half[2] = {b_part[2 * half], b_part[2 * half + 1]};
        simt::mma_m16n8k16(acc[half], a_part, b_half, T{});
      }
    }
    if (bug != 6) __syncthreads();
  }
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 4; ++i) {
      const int row = row0 + warp_row + lane / 4 + 8 * (i >> 1);
      const int column = column0 + warp_column + 8 * half + 2 * (lane % 4) + (i & 1);
      if (row < rows && column < columns) c[row * columns + column] = acc[half][i];
    }
  }
}

template <typename T>
int matmul(const T* a, const T* b, float* c, int64_t rows, int64_t columns, int64_t depth,
           int64_t bug) {
  return simt::guarded([=] {
    const dim3 grid(static_cast<unsigned>((columns + kTile - 1) / kTile),
                    static_cast<unsigned>((rows + kTile - 1) / kTile));
    return simt::launch(matmul_kernel<T>, grid, kThreads, 0, nullptr, a, b, c, rows, columns, depth,
                        bug);
  });
}

}  // namespace

SIMT_EXPORT int seeded_bug_matmul_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c,
                                       int64_t rows, int64_t columns, int64_t depth, int64_t bug) {
  return matmul(a, b, c, rows, columns, depth, bug);
}

SIMT_EXPORT int seeded_bug_matmul_fp16(const __half* a, const __half* b, float* c, int64_t rows,
                                       int64_t columns, int64_t depth, int64_t bug) {
  return matmul(a, b, c, rows, columns, depth, bug);
}
