// A sum over blocks and a staged affine map, right with bug = 0, each other number one mistake. The
// numbers are those of tests/emulator/README.md.
#include "simt.h"
#include "testing.h"

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

__global__ void total_kernel(const float* x, int64_t n, float* partials, unsigned* ticket,
                             float* total, int bug) {
  SIMT_SHARED(float, warp_sums, [kWarps]);
  SIMT_SHARED(bool, is_last);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  if (bug == 14 && thread == 37) return;
  const int64_t end = bug == 3 ? n + 1 : n;
  float sum = 0;
  for (int64_t i = blockIdx.x * kThreads + thread; i < end; i += gridDim.x * kThreads) sum += x[i];
  if (bug != 7 || lane != 5) {
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
  }
  if (lane == 0) warp_sums[bug == 2 ? warp + 1 : warp] = sum;
  if (bug == 4) {
    if (thread < 64) __syncthreads();
  } else if (bug != 1) {
    __syncthreads();
  }
  if (thread == 0) {
    float block_sum = 0;
    for (int i = 0; i < kWarps; ++i) block_sum += warp_sums[i];
    if (bug == 22) __threadfence();
    partials[blockIdx.x] = block_sum;
    if (bug == 23) __threadfence_block();
    if (bug != 13 && bug != 22 && bug != 23) __threadfence();
    unsigned before;
    if (bug == 9) {
      before = *ticket;
      *ticket = before + 1;
    } else {
      before = atomicAdd(ticket, 1u);
    }
    is_last = before == gridDim.x - 1;
    if (bug != 24) __threadfence();
  }
  __syncthreads();
  if (is_last && thread == 0) {
    float sum_of_all = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) {
      sum_of_all += bug == 16 ? __ldg(partials + i) : partials[i];
    }
    *total = sum_of_all;
    *ticket = 0;
  }
}

__global__ void affine_kernel(const float* x, float* y, int64_t n, int channels, const float* scale,
                              const float* shift, int bug) {
  SIMT_DYN_SHARED(float, staged);
  const int staged_end = bug == 11 ? channels + 1 : channels;
  for (int c = threadIdx.x; c < staged_end; c += kThreads) {
    staged[c] = scale[c];
    staged[channels + c] = shift[c];
  }
  if (bug != 12) __syncthreads();
  const float* from = bug == 8 ? x + 1 : x;
  for (int64_t v = blockIdx.x * kThreads + threadIdx.x; v < n / 4; v += gridDim.x * kThreads) {
    const float4 in = *reinterpret_cast<const float4*>(from + 4 * v);
    const int c = static_cast<int>(4 * v % channels);
    const float* a = staged + c;
    const float* b = staged + channels + c;
    *reinterpret_cast<float4*>(y + 4 * v) = {in.x * a[0] + b[0], in.y * a[1] + b[1],
                                             in.z * a[2] + b[2], in.w * a[3] + b[3]};
  }
}

}  // namespace

SIMT_EXPORT int seeded_bug_total(const float* x, int64_t n, float* partials, unsigned* ticket,
                                 float* total, int64_t blocks, int64_t bug) {
  return simt::guarded([=] {
    return simt::launch(total_kernel, static_cast<unsigned>(blocks), kThreads, 0, nullptr, x, n,
                        partials, ticket, total, bug);
  });
}

SIMT_EXPORT int seeded_bug_affine(const float* x, float* y, int64_t n, int64_t channels,
                                  const float* scale, const float* shift, int64_t blocks,
                                  int64_t bug) {
  const size_t bytes = static_cast<size_t>(8 * channels - (bug == 18 ? 4 : 0));
  return simt::guarded([=] {
    return simt::launch(affine_kernel, static_cast<unsigned>(blocks), kThreads, bytes, nullptr, x,
                        y, n, channels, scale, shift, bug);
  });
}
