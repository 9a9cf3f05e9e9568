#include "leaky_relu.h"

#include "vector.h"

namespace genimg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // with more, a thread takes several vectors

// The sign of `gate` selects the factor of `value`: forward with gate = value = x, backward with
// gate = x, value = grad_y.
template <typename T>
__device__ __forceinline__ T leaky(T gate, T value, float slope) {
  const float wide = widen(value);
  return narrow<T>(widen(gate) > 0 ? wide : wide * slope);
}

// Vectors from the front, then the last n % kSize elements, one per thread; no vectors where a
// pointer is not aligned to 16 bytes (a tensor that starts inside another one).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    leaky_relu_fwd_kernel(const T* x, T* y, int64_t n, int64_t vectors, float slope) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t v = first; v < vectors; v += step) {
    const Vector<T> in = load_vector<Vector<T>::kSize>(x + v * Vector<T>::kSize);
    Vector<T> out;
#pragma unroll
    for (int i = 0; i < Vector<T>::kSize; ++i) {
      out.lane[i] = leaky(in.lane[i], in.lane[i], slope);
    }
    store_vector(y + v * Vector<T>::kSize, out);
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
    const Vector<T> gate = load_vector<Vector<T>::kSize>(x + v * Vector<T>::kSize);
    const Vector<T> grad = load_vector<Vector<T>::kSize>(grad_y + v * Vector<T>::kSize);
    Vector<T> out;
#pragma unroll
    for (int i = 0; i < Vector<T>::kSize; ++i) {
      out.lane[i] = leaky(gate.lane[i], grad.lane[i], slope);
    }
    store_vector(grad_x + v * Vector<T>::kSize, out);
  }
  for (int64_t i = vectors * Vector<T>::kSize + first; i < n; i += step) {
    grad_x[i] = leaky(x[i], grad_y[i], slope);
  }
}

template <typename T>
int64_t count_vectors(int64_t n, bool aligned) {
  return aligned ? n / Vector<T>::kSize : 0;
}

int count_blocks(int64_t n, int64_t vectors) {
  const int64_t items = vectors > 0 ? vectors : n;
  const int64_t blocks = (items + kThreads - 1) / kThreads;
  return static_cast<int>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

}  // namespace

template <typename T>
cudaError_t launch_leaky_relu_fwd(const T* x, T* y, int64_t n, float slope, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const int64_t vectors = count_vectors<T>(n, are_aligned(x, y));
  return simt::launch(leaky_relu_fwd_kernel<T>, count_blocks(n, vectors), kThreads, 0, stream, x, y,
                      n, vectors, slope);
}

template <typename T>
cudaError_t launch_leaky_relu_bwd(const T* grad_y, const T* x, T* grad_x, int64_t n, float slope,
                                  cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const int64_t vectors = count_vectors<T>(n, are_aligned(grad_y, x, grad_x));
  return simt::launch(leaky_relu_bwd_kernel<T>, count_blocks(n, vectors), kThreads, 0, stream,
                      grad_y, x, grad_x, n, vectors, slope);
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
