// One small kernel for each rule of the emulator: it must accept the correct kernels and name the
// error of the others.
#include "simt.h"
#include "testing.h"

namespace {

__device__ int program_variable;

__global__ void warp_reduce_kernel(int* out, int bug) {
  SIMT_SHARED(int, values, [64]);
  const int thread = threadIdx.x;
  values[thread] = thread;
  __syncwarp();
  for (int step = 16; step > 0; step /= 2) {
    int other = 0;
    if (thread % 32 < step) other = values[thread + step];
    if (bug == 0) __syncwarp();
    if (thread % 32 < step) values[thread] += other;
    if (bug == 0) __syncwarp();
  }
  if (thread % 32 == 0) out[thread / 32] = values[thread];
}

__global__ void histogram_kernel(const int* x, int n, int* out, int bug) {
  SIMT_SHARED(int, counts, [8]);
  const int thread = threadIdx.x;
  if (thread < 8) counts[thread] = 0;
  __syncthreads();
  for (int i = thread; i < n; i += blockDim.x) atomicAdd(&counts[x[i] & 7], 1);
  if (bug == 0) __syncthreads();
  if (thread < 8) atomicAdd(&out[thread], counts[thread]);
}

__global__ void half_warps_kernel(int* out) {
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, lane = thread % 32;
  const unsigned mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  int sum = thread;
  for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(mask, sum, step);
  int other = thread;
  for (int step = 8; step > 0; step /= 2) {
    other += __shfl_down_sync(0xffffffff, other, step, 16);
  }
  const int first = __shfl_sync(0xffffffff, other, 0, 16);
  out[thread] = sum == first ? sum : -1;
}

__global__ void partial_mask_kernel(int* out, int bug) {
  SIMT_SHARED(int, values, [32]);
  const int lane = threadIdx.x;
  const unsigned mask = 0x000000ff;
  values[lane] = lane;
  if (lane < 8) {
    __syncwarp(mask);
    out[lane] = values[lane ^ (bug == 0 ? 1 : 8)];
  } else {
    out[lane] = 0;
  }
}

__global__ void reverse_kernel(const int* x, int* out) {
  SIMT_DYN_SHARED(int, values);
  const int thread = threadIdx.x, n = blockDim.x;
  values[thread] = x[thread];
  __syncthreads();
  out[thread] = values[n - 1 - thread];
}

__global__ void votes_kernel(int* out) {
  const int thread = threadIdx.x;
  const bool odd = thread % 2 != 0;
  const unsigned ballot = __ballot_sync(0xffffffff, odd);
  const int any = __any_sync(0xffffffff, thread == 3), all = __all_sync(0xffffffff, thread >= 0);
  const unsigned sum = __reduce_add_sync(0xffffffff, odd);
  const int count = __syncthreads_count(odd), every = __syncthreads_and(odd);
  const int some = __syncthreads_or(thread == 3);
  if (thread == 0) {
    out[0] = static_cast<int>(ballot);
    out[1] = any;
    out[2] = all;
    out[3] = static_cast<int>(sum);
    out[4] = count;
    out[5] = every;
    out[6] = some;
  }
}

__global__ void readers_kernel(int* out) {
  SIMT_SHARED(int, value);
  if (threadIdx.x == 0) value = 7;
  __syncthreads();
  out[threadIdx.x] = value;
  __syncwarp();
  if (threadIdx.x < 32) __syncwarp();
  if (threadIdx.x == 0) value = 8;
}

__global__ void bytes_kernel(uint8_t* out) {
  SIMT_SHARED(uint8_t, values, [64]);
  values[threadIdx.x] = static_cast<uint8_t>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void neighbours_kernel(int* x, int n) {
  const int thread = threadIdx.x;
  if (thread + 1 < n) x[thread] += x[thread + 1];
}

__global__ void uneven_loop_kernel(int* out) {
  for (int i = 0; i < 1 + static_cast<int>(threadIdx.x) / 32; ++i) __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void local_overrun_kernel(int* out, int n) {
  int values[4] = {};
  for (int i = 0; i < n; ++i) values[i] = i;
  out[threadIdx.x] = values[threadIdx.x & 3];
}

__global__ void lonely_lane_kernel(int* out) {
  out[threadIdx.x] = static_cast<int>(__ballot_sync(0x0000fffe, 1));
}

__global__ void misread_kernel(int* out, int kind) {
  SIMT_SHARED(int, values, [32]);
  const int thread = threadIdx.x;
  if (kind == 0 && thread == 3) program_variable = out[0];
  if (kind == 1) out[thread] = __shfl_sync(0x0000ffff << (thread / 16 * 16), thread, 31 - thread);
  if (kind == 2) atomicAdd(&out[0], thread);
  if (kind == 2 && thread == 5) out[1] = out[0];
  if (kind == 3) out[thread] = out[thread + 1];
  if (kind == 4 && thread == 0) values[0] = 1;
  if (kind == 4) out[thread] = values[1];
  if (kind == 5) simt::cp_async_16(&values[4 * (thread % 8)], out, thread < 8);
  if (kind == 6 && thread == 0) atomicAdd(reinterpret_cast<int*>(&values[0]), 1);
  if (kind == 7) simt::cp_async_16(out, out);
  if (kind == 9) out[thread] = program_variable;
  if (kind == 8) simt::cp_async_16(&values[1], out);
}

template <typename... P, typename... A>
int run(void (*kernel)(P...), dim3 grid, dim3 block, int64_t shared, A... args) {
  return simt::guarded([=] {
    return simt::launch(kernel, grid, block, static_cast<size_t>(shared), nullptr, args...);
  });
}

}  // namespace

SIMT_EXPORT int small_warp_reduce(int* out, int64_t bug) {
  return run(warp_reduce_kernel, 1, 64, 0, out, bug);
}
SIMT_EXPORT int small_histogram(const int* x, int64_t n, int* out, int64_t bug) {
  return run(histogram_kernel, 3, 96, 0, x, n, out, bug);
}
SIMT_EXPORT int small_half_warps(int* out) {
  return run(half_warps_kernel, 1, dim3(16, 3), 0, out);
}
SIMT_EXPORT int small_partial_mask(int* out, int64_t bug) {
  return run(partial_mask_kernel, 1, 32, 0, out, bug);
}
SIMT_EXPORT int small_reverse(const int* x, int* out, int64_t n) {
  return run(reverse_kernel, 1, n, 4 * n, x, out);
}
SIMT_EXPORT int small_votes(int* out) { return run(votes_kernel, 1, 64, 0, out); }
SIMT_EXPORT int small_readers(int* out, int64_t n) { return run(readers_kernel, 1, n, 0, out); }
SIMT_EXPORT int small_bytes(uint8_t* out) { return run(bytes_kernel, 1, 64, 0, out); }
SIMT_EXPORT int small_neighbours(int* x, int64_t n) {
  return run(neighbours_kernel, 1, n, 0, x, n);
}
SIMT_EXPORT int small_uneven_loop(int* out) { return run(uneven_loop_kernel, 1, 64, 0, out); }
SIMT_EXPORT int small_local_overrun(int* out, int64_t n) {
  return run(local_overrun_kernel, 1, 32, 0, out, n);
}
SIMT_EXPORT int small_lonely_lane(int* out) { return run(lonely_lane_kernel, 1, 32, 0, out); }
SIMT_EXPORT int small_misread(int* out, int64_t kind) {
  return run(misread_kernel, 1, 32, 0, out, kind);
}
SIMT_EXPORT int small_too_large(int* out, int64_t threads, int64_t shared) {
  return run(votes_kernel, 1, threads, shared, out);
}
