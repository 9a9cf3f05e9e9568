#include "leaky_relu.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace genimg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // beyond it a thread takes several vectors

// 16 bytes, the widest access a thread can make.
template <typename T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T lane[kSize];
};

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void narrow(float value, float* to) { *to = value; }
__device__ __forceinline__ void narrow(float value, __half* to) { *to = __float2half_rn(value); }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16* to) {
  *to = __float2bfloat16_rn(value);
}

// `gate` decides by its sign, `value` passes through: forward with gate = value = x, backward with
// gate = x, value = grad_y.
template <typename T>
__device__ __forceinline__ T leaky(T gate, T value, float slope) {
  T result;
  const float wide = widen(value);
  narrow(widen(gate) > 0 ? wide : wide * slope, &result);
  return result;
}

// Vectors from the front, the n % kSize last elements one a thread; no vectors at all where a
// pointer is not aligned to 16 bytes (a tensor that starts inside another one).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    leaky_relu_fwd_kernel(const T* x, T* y, int64_t n, int64_t vectors, float slope) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t v = first; v < vectors; v += step) {
    const Vector<T> in = reinterpret_cast<const Vector<T>*>(x)[v];
    Vector<T> out;
#pragma unroll
    for (int i = 0; i < Vector<T>::kSize; ++i) {
      out.lane[i] = leaky(in.lane[i], in.lane[i], slope);
    }
    reinterpret_cast<Vector<T>*>(y)[v] = out;
  }
  for (int64_t i = vectors * Vector<T>::kSize + first; i < n; i += step) {
    y[i] = leaky(x[i], x[i], slope);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    leaky_relu_bwd_kernel(const T* grad_y, const T* x, T* grad_x, int64_t n, int64_t vectors,
                          float slope) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t v = first; v < vectors; v += step) {
    const Vector<T> gate = reinterpret_cast<const Vector<T>*>(x)[v];
    const Vector<T> grad = reinterpret_cast<const Vector<T>*>(grad_y)[v];
    Vector<T> out;
#pragma unroll
    for (int i = 0; i < Vector<T>::kSize; ++i) {
      out.lane[i] = leaky(gate.lane[i], grad.lane[i], slope);
    }
    reinterpret_cast<Vector<T>*>(grad_x)[v] = out;
  }
  for (int64_t i = vectors * Vector<T>::kSize + first; i < n; i += step) {
    grad_x[i] = leaky(x[i], grad_y[i], slope);
  }
}

template <typename T>
int64_t count_vectors(int64_t n, uintptr_t addresses) {
  return addresses % sizeof(Vector<T>) == 0 ? n / Vector<T>::kSize : 0;
}

int count_blocks(int64_t n, int64_t vectors) {
  const int64_t items = vectors > 0 ? vectors : n;
  const int64_t blocks = (items + kThreads - 1) / kThreads;
  return static_cast<int>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

template <typename... P>
uintptr_t union_of_addresses(P... pointers) {
  return (reinterpret_cast<uintptr_t>(pointers) | ...);
}

}  // namespace

template <typename T>
cudaError_t launch_leaky_relu_fwd(const T* x, T* y, int64_t n, float slope, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const int64_t vectors = count_vectors<T>(n, union_of_addresses(x, y));
  leaky_relu_fwd_kernel<T>
      <<<count_blocks(n, vectors), kThreads, 0, stream>>>(x, y, n, vectors, slope);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_leaky_relu_bwd(const T* grad_y, const T* x, T* grad_x, int64_t n, float slope,
                                  cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const int64_t vectors = count_vectors<T>(n, union_of_addresses(grad_y, x, grad_x));
  leaky_relu_bwd_kernel<T>
      <<<count_blocks(n, vectors), kThreads, 0, stream>>>(grad_y, x, grad_x, n, vectors, slope);
  return cudaGetLastError();
}

#define GENIMG_INSTANTIATE(T)                                                                \
  template cudaError_t launch_leaky_relu_fwd<T>(const T*, T*, int64_t, float, cudaStream_t); \
  template cudaError_t launch_leaky_relu_bwd<T>(const T*, const T*, T*, int64_t, float,      \
                                                cudaStream_t);
GENIMG_INSTANTIATE(float)
GENIMG_INSTANTIATE(__half)
GENIMG_INSTANTIATE(__nv_bfloat16)
#undef GENIMG_INSTANTIATE

}  // namespace genimg::cuda
