// A kernel for each wrapper of PTX in simt.h; its results are known, and the same on a GPU and in
// the emulator.
#include "simt.h"
#include "testing.h"

namespace {

// Lane l's 16 bytes, but those of every third lane.
__global__ void cp_async_kernel(const uint16_t* x, uint16_t* out) {
  SIMT_SHARED(uint16_t, tile, [32][8]);
  const int lane = threadIdx.x;
  for (int i = 0; i < 8; ++i) tile[lane][i] = 7;
  __syncwarp();
  simt::cp_async_16(tile[lane], x + 8 * lane, lane % 3 != 0);
  simt::cp_async_commit();
  simt::cp_async_wait<0>();
  __syncwarp();
  for (int i = 0; i < 8; ++i) out[8 * lane + i] = tile[31 - lane][i];
}

// Two groups under way: after a wait for the older one, its bytes are there.
__global__ void cp_async_groups_kernel(const uint16_t* x, uint16_t* out) {
  SIMT_SHARED(uint16_t, tile, [2][32][8]);
  const int lane = threadIdx.x;
  for (int half = 0; half < 2; ++half) {
    simt::cp_async_16(tile[half][lane], x + 256 * half + 8 * lane);
    simt::cp_async_commit();
  }
  simt::cp_async_wait<1>();
  for (int i = 0; i < 8; ++i) out[8 * lane + i] = tile[0][lane][i];
  simt::cp_async_wait<0>();
  for (int i = 0; i < 8; ++i) out[256 + 8 * lane + i] = tile[1][lane][i];
}

// out[lane] are the lane's eight elements of four matrices.
__global__ void ldmatrix_kernel(const uint16_t* x, uint16_t* out, int transposed) {
  SIMT_SHARED(uint16_t, tile, [32][8]);
  const int lane = threadIdx.x;
  for (int i = 0; i < 8; ++i) tile[lane][i] = x[8 * lane + i];
  __syncwarp();
  uint32_t part[4];
  if (transposed != 0) {
    simt::ldmatrix_x4_trans(part, tile[lane]);
  } else {
    simt::ldmatrix_x4(part, tile[lane]);
  }
  for (int i = 0; i < 4; ++i) {
    out[8 * lane + 2 * i] = static_cast<uint16_t>(part[i] & 0xffff);
    out[8 * lane + 2 * i + 1] = static_cast<uint16_t>(part[i] >> 16);
  }
}

// The lane's registers of a and b are given, those of the product are written.
template <typename T>
__global__ void mma_kernel(const uint32_t* a, const uint32_t* b, float* out) {
  const int lane = threadIdx.x;
  uint32_t a_part[4], b_part[2];
  float acc[4];
  for (int i = 0; i < 4; ++i) a_part[i] = a[4 * lane + i];
  for (int i = 0; i < 2; ++i) b_part[i] = b[2 * lane + i];
  for (int i = 0; i < 4; ++i) acc[i] = static_cast<float>(lane);
  simt::mma_m16n8k16(acc, a_part, b_part, T{});
  for (int i = 0; i < 4; ++i) out[4 * lane + i] = acc[i];
}

template <typename... P, typename... A>
int run(void (*kernel)(P...), A... args) {
  return simt::guarded([=] { return simt::launch(kernel, 1, 32, 0, nullptr, args...); });
}

}  // namespace

SIMT_EXPORT int contract_cp_async(const uint16_t* x, uint16_t* out) {
  return run(cp_async_kernel, x, out);
}
SIMT_EXPORT int contract_cp_async_groups(const uint16_t* x, uint16_t* out) {
  return run(cp_async_groups_kernel, x, out);
}
SIMT_EXPORT int contract_ldmatrix(const uint16_t* x, uint16_t* out, int64_t transposed) {
  return run(ldmatrix_kernel, x, out, transposed);
}
SIMT_EXPORT int contract_mma_bf16(const uint32_t* a, const uint32_t* b, float* out) {
  return run(mma_kernel<__nv_bfloat16>, a, b, out);
}
SIMT_EXPORT int contract_mma_fp16(const uint32_t* a, const uint32_t* b, float* out) {
  return run(mma_kernel<__half>, a, b, out);
}
