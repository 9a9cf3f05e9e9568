#include "reparam_kl.h"

#include "philox.h"
#include "vector.h"

namespace genimg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kWarpRow = 2048;  // elements up to which one warp takes a row
constexpr float kLogvarMin = -30, kLogvarMax = 20;

// A comparison with NaN is false, so that NaN is kept.
__device__ __forceinline__ float clamp_logvar(float logvar) {
  const float above = logvar < kLogvarMin ? kLogvarMin : logvar;
  return above > kLogvarMax ? kLogvarMax : above;
}

// 16 bytes of elements whose first index in the whole tensor is a multiple of their number, so that
// their noise is that of whole counters. At the ends of a row only some of them belong to the row.
template <typename T>
struct Unit {
  static constexpr int kSize = Vector<T>::kSize;

  __device__ Unit(int64_t index, int64_t row_begin, int64_t row_end, bool aligned)
      : first(index * kSize),
        from(row_begin > first ? static_cast<int>(row_begin - first) : 0),
        to(row_end - first < kSize ? static_cast<int>(row_end - first) : kSize),
        whole(aligned && from == 0 && to == kSize) {}

  __device__ Vector<T> load(const T* x) const {
    if (whole) return load_vector<kSize>(x + first);
    Vector<T> values = {};
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (i >= from && i < to) values.lane[i] = x[first + i];
    }
    return values;
  }

  __device__ void store(T* x, const Vector<T>& values) const {
    if (whole) {
      store_vector(x + first, values);
      return;
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (i >= from && i < to) x[first + i] = values.lane[i];
    }
  }

  __device__ void noise(const int64_t* seed, float* eps) const {
    const auto key = static_cast<uint64_t>(seed[0]), offset = static_cast<uint64_t>(seed[1]);
#pragma unroll
    for (int i = 0; i < kSize; i += 4) {
      philox_normal(key, static_cast<uint64_t>(first + i) / 4, offset, eps + i);
    }
  }

  const int64_t first;
  const int from, to;
  const bool whole;
};

// A row and the threads that share it: a warp, or the block.
template <int kRowThreads>
struct Row {
  __device__ Row(int64_t row_size, int unit_size)
      : number(static_cast<int64_t>(blockIdx.x) * (kThreads / kRowThreads) +
               threadIdx.x / kRowThreads),
        begin(number * row_size),
        end(begin + row_size),
        unit(begin / unit_size + threadIdx.x % kRowThreads),
        last_unit((end + unit_size - 1) / unit_size) {}

  const int64_t number, begin, end;
  const int64_t unit, last_unit;  // this thread's first one, and the row's end
};

// The sum over the row's threads in a fixed order, for its first thread.
template <int kRowThreads>
__device__ float sum_row(float sum) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
  if constexpr (kRowThreads > 32) {
    SIMT_SHARED(float, warp_sums, [kRowThreads / 32]);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int warp = 0; warp < kRowThreads / 32; ++warp) sum += warp_sums[warp];
  }
  return sum;
}

template <typename T, int kRowThreads>
__global__ void __launch_bounds__(kThreads)
    reparam_kl_fwd_kernel(const T* mu, const T* logvar, const int64_t* seed, T* z, float* kl,
                          int64_t rows, int64_t row_size, bool aligned) {
  constexpr int kSize = Unit<T>::kSize;
  const Row<kRowThreads> row(row_size, kSize);
  float sum = 0;
  if (row.number < rows) {
    for (int64_t index = row.unit; index < row.last_unit; index += kRowThreads) {
      const Unit<T> unit(index, row.begin, row.end, aligned);
      const Vector<T> mean = unit.load(mu), lv = unit.load(logvar);
      float eps[kSize];
      unit.noise(seed, eps);
      Vector<T> out;
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        const float m = widen(mean.lane[i]), l = clamp_logvar(widen(lv.lane[i]));
        out.lane[i] = narrow<T>(m + exp_of(0.5f * l) * eps[i]);
        // Outside the row mu and logvar are 0, and so is the term.
        sum += 0.5f * (m * m + expm1_minus_x(l));
      }
      unit.store(z, out);
    }
  }
  sum = sum_row<kRowThreads>(sum);
  if (threadIdx.x % kRowThreads == 0 && row.number < rows) kl[row.number] = sum;
}

template <typename T, int kRowThreads>
__global__ void __launch_bounds__(kThreads)
    reparam_kl_bwd_kernel(const T* grad_z, const float* grad_kl, const T* mu, const T* logvar,
                          const int64_t* seed, T* grad_mu, T* grad_logvar, int64_t rows,
                          int64_t row_size, bool aligned) {
  constexpr int kSize = Unit<T>::kSize;
  const Row<kRowThreads> row(row_size, kSize);
  if (row.number >= rows) return;
  const float g = grad_kl[row.number];
  for (int64_t index = row.unit; index < row.last_unit; index += kRowThreads) {
    const Unit<T> unit(index, row.begin, row.end, aligned);
    const Vector<T> dz = unit.load(grad_z), mean = unit.load(mu), lv = unit.load(logvar);
    float eps[kSize];
    unit.noise(seed, eps);
    Vector<T> mean_grad, lv_grad;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float d = widen(dz.lane[i]), l = widen(lv.lane[i]), clamped = clamp_logvar(l);
      const float slope = 0.5f * (d * eps[i] * exp_of(0.5f * clamped) + g * expm1_of(clamped));
      mean_grad.lane[i] = narrow<T>(d + g * widen(mean.lane[i]));
      lv_grad.lane[i] = narrow<T>(l == clamped ? slope : 0.0f);
    }
    unit.store(grad_mu, mean_grad);
    unit.store(grad_logvar, lv_grad);
  }
}

template <int kRowThreads>
dim3 grid_of(int64_t rows) {
  constexpr int kRows = kThreads / kRowThreads;
  return dim3(static_cast<unsigned>((rows + kRows - 1) / kRows));
}

}  // namespace

template <typename T>
cudaError_t launch_reparam_kl_fwd(const T* mu, const T* logvar, const int64_t* seed, T* z,
                                  float* kl, int64_t rows, int64_t row_size, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const bool aligned = are_aligned(mu, logvar, z);
  if (row_size <= kWarpRow) {
    return simt::launch(reparam_kl_fwd_kernel<T, 32>, grid_of<32>(rows), kThreads, 0, stream, mu,
                        logvar, seed, z, kl, rows, row_size, aligned);
  }
  return simt::launch(reparam_kl_fwd_kernel<T, kThreads>, grid_of<kThreads>(rows), kThreads, 0,
                      stream, mu, logvar, seed, z, kl, rows, row_size, aligned);
}

template <typename T>
cudaError_t launch_reparam_kl_bwd(const T* grad_z, const float* grad_kl, const T* mu,
                                  const T* logvar, const int64_t* seed, T* grad_mu, T* grad_logvar,
                                  int64_t rows, int64_t row_size, cudaStream_t stream) {
  if (rows == 0 || row_size == 0) return cudaSuccess;
  const bool aligned = are_aligned(grad_z, mu, logvar, grad_mu, grad_logvar);
  if (row_size <= kWarpRow) {
    return simt::launch(reparam_kl_bwd_kernel<T, 32>, grid_of<32>(rows), kThreads, 0, stream,
                        grad_z, grad_kl, mu, logvar, seed, grad_mu, grad_logvar, rows, row_size,
                        aligned);
  }
  return simt::launch(reparam_kl_bwd_kernel<T, kThreads>, grid_of<kThreads>(rows), kThreads, 0,
                      stream, grad_z, grad_kl, mu, logvar, seed, grad_mu, grad_logvar, rows,
                      row_size, aligned);
}

#define GENIMG_INSTANTIATE(T)                                                                   \
  template cudaError_t launch_reparam_kl_fwd<T>(const T*, const T*, const int64_t*, T*, float*, \
                                                int64_t, int64_t, cudaStream_t);                \
  template cudaError_t launch_reparam_kl_bwd<T>(const T*, const float*, const T*, const T*,     \
                                                const int64_t*, T*, T*, int64_t, int64_t,       \
                                                cudaStream_t);
GENIMG_INSTANTIATE(float)
GENIMG_INSTANTIATE(__half)
GENIMG_INSTANTIATE(__nv_bfloat16)
#undef GENIMG_INSTANTIATE

}  // namespace genimg::cuda
