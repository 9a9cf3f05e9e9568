#include "batch_norm_act.h"

#include "channel_norm.h"
#include "channel_plan.h"

namespace genimg::cuda {
namespace {

template <typename T, bool kPixels, int kLanes>
__global__ void __launch_bounds__(kThreads)
    batch_norm_act_stats_kernel(const T* x, WalkShape shape, float eps, float* scratch,
                                unsigned* tickets, float* mean, float* rstd, float* var) {
  using ThisWalk = Walk<kPixels, kLanes>;
  constexpr int kSlots = ThisWalk::kSlots;
  const ThisWalk walk(shape);
  const int64_t channels = shape.tensor.channels, numbers = channels * gridDim.y;
  Moments<kSlots> all;
  float pivot[kSlots] = {};
  read_pivots(pivot, x, walk);
  for (unsigned i = walk.first; i < walk.end; i += kUnroll * walk.stride) {
    Vector<T, kLanes> values[kUnroll];
    int count = 0;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (i + u * walk.stride < walk.end) {
        values[u] = load_vector<kLanes>(x + walk.offset(i + u * walk.stride));
        count = u + 1;
      }
    }
    // The mean of the values in registers, then their deviations from it.
    float part[Moments<kSlots>::kNumbers] = {};
    part[0] = static_cast<float>(count * (kLanes / kSlots));
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        const int s = ThisWalk::slot(lane);
        if (u < count) part[1 + s] += widen(values[u].lane[lane]) - pivot[s];
      }
    }
    const float inverse = 1 / part[0];
#pragma unroll
    for (int s = 0; s < kSlots; ++s) part[1 + s] *= inverse;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        const int s = ThisWalk::slot(lane);
        const float d = widen(values[u].lane[lane]) - pivot[s] - part[1 + s];
        if (u < count) part[1 + kSlots + s] += d * d;
      }
    }
    all.merge(part);
  }
  merge_columns(&all, shape.lanes);
  if (walk.row == 0 && walk.end > 0) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int64_t at = blockIdx.y * channels + walk.channel + s;
      scratch[at] = all.count;
      scratch[numbers + at] = all.mean[s];
      scratch[2 * numbers + at] = all.m2[s];
    }
  }
  if (!is_last_block(tickets)) return;
  over_channels_of_block(shape, kSlots, [&](int64_t c) {
    const T first = x[kPixels ? c : c * shape.tensor.channel_stride];
    const double total = shape.channel_values;
    double shifted = 0, deviations = 0;
    for (int64_t at = c; at < numbers; at += channels) {
      shifted += scratch[numbers + at] * (scratch[at] / total);
    }
    for (int64_t at = c; at < numbers; at += channels) {
      const double delta = scratch[numbers + at] - shifted;
      deviations += scratch[2 * numbers + at] + delta * delta * scratch[at];
    }
    mean[c] = static_cast<float>(pivot_of(first) + shifted);
    rstd[c] = static_cast<float>(1 / sqrt(deviations / total + eps));
    var[c] = static_cast<float>(deviations / (total - 1));
  });
}

__global__ void __launch_bounds__(kThreads)
    batch_norm_act_running_kernel(const float* running_mean, const float* running_var,
                                  int64_t channels, float eps, float* mean, float* rstd) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= channels) return;
  mean[c] = running_mean[c];
  rstd[c] = static_cast<float>(1 / sqrt(static_cast<double>(running_var[c]) + eps));
}

template <typename T, bool kPixels, int kLanes>
__global__ void __launch_bounds__(kThreads)
    batch_norm_act_fwd_kernel(const T* x, T* y, WalkShape shape, const float* weight,
                              const float* bias, const float* mean, const float* rstd,
                              float negative_slope) {
  using ThisWalk = Walk<kPixels, kLanes>;
  const ThisWalk walk(shape);
  if (walk.end == 0) return;
  const Affine<ThisWalk::kSlots> affine(walk.channel, weight, bias, mean + walk.channel,
                                        rstd + walk.channel);
#pragma unroll kUnroll
  for (unsigned i = walk.first; i < walk.end; i += walk.stride) {
    const auto in = load_vector<kLanes>(x + walk.offset(i));
    Vector<T, kLanes> out;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      const int s = ThisWalk::slot(lane);
      const float z = (widen(in.lane[lane]) - affine.mean[s]) * affine.scale[s] + affine.shift[s];
      out.lane[lane] = narrow<T>(leaky(z, z, negative_slope));
    }
    store_vector(y + walk.dense_offset(i), out);
  }
}

template <typename T, bool kPixels, int kLanes>
__global__ void __launch_bounds__(kThreads)
    batch_norm_act_sums_kernel(const T* grad_y, const T* x, WalkShape shape, const float* weight,
                               const float* bias, const float* mean, const float* rstd,
                               float negative_slope, float* scratch, unsigned* tickets,
                               float* grad_weight, float* grad_bias) {
  using ThisWalk = Walk<kPixels, kLanes>;
  constexpr int kSlots = ThisWalk::kSlots;
  const ThisWalk walk(shape);
  const int64_t channels = shape.tensor.channels, numbers = channels * gridDim.y;
  Sums<kSlots> all;
  if (walk.end > 0) {
    const Affine<kSlots> affine(walk.channel, weight, bias, mean + walk.channel,
                                rstd + walk.channel);
#pragma unroll 2
    for (unsigned i = walk.first; i < walk.end; i += walk.stride) {
      const auto in = load_vector<kLanes>(x + walk.offset(i));
      const auto grad = load_vector<kLanes>(grad_y + walk.dense_offset(i));
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        const int s = ThisWalk::slot(lane);
        const float centred = widen(in.lane[lane]) - affine.mean[s], g = widen(grad.lane[lane]);
        const float dz = leaky(centred * affine.scale[s] + affine.shift[s], g, negative_slope);
        all.dz[s] += dz;
        all.dz_x[s] += dz * centred;
      }
    }
  }
  merge_columns(&all, shape.lanes);
  if (walk.row == 0 && walk.end > 0) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int64_t at = blockIdx.y * channels + walk.channel + s;
      scratch[at] = all.dz[s];
      scratch[numbers + at] = all.dz_x[s];
    }
  }
  if (!is_last_block(tickets)) return;
  over_channels_of_block(shape, kSlots, [&](int64_t c) {
    double dz = 0, dz_x = 0;
    for (int64_t at = c; at < numbers; at += channels) {
      dz += scratch[at];
      dz_x += scratch[numbers + at];
    }
    grad_bias[c] = static_cast<float>(dz);
    grad_weight[c] = static_cast<float>(dz_x * rstd[c]);
  });
}

template <typename T, bool kPixels, int kLanes>
__global__ void __launch_bounds__(kThreads)
    batch_norm_act_bwd_kernel(const T* grad_y, const T* x, T* grad_x, WalkShape shape,
                              const float* weight, const float* bias, const float* mean,
                              const float* rstd, const float* grad_weight, const float* grad_bias,
                              float negative_slope) {
  using ThisWalk = Walk<kPixels, kLanes>;
  constexpr int kSlots = ThisWalk::kSlots;
  const ThisWalk walk(shape);
  if (walk.end == 0) return;
  const Affine<kSlots> affine(walk.channel, weight, bias, mean + walk.channel, rstd + walk.channel);
  // grad_x = scale dz + (x - mean) slope + constant
  float slope[kSlots] = {}, constant[kSlots] = {};
  if (grad_weight) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int c = walk.channel + s;
      const float share = -affine.scale[s] / static_cast<float>(shape.channel_values);
      slope[s] = share * rstd[c] * grad_weight[c];
      constant[s] = share * grad_bias[c];
    }
  }
#pragma unroll 2
  for (unsigned i = walk.first; i < walk.end; i += walk.stride) {
    const int64_t dense = walk.dense_offset(i);
    const auto in = load_vector<kLanes>(x + walk.offset(i));
    const auto grad = load_vector<kLanes>(grad_y + dense);
    Vector<T, kLanes> out;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      const int s = ThisWalk::slot(lane);
      const float centred = widen(in.lane[lane]) - affine.mean[s], g = widen(grad.lane[lane]);
      const float dz = leaky(centred * affine.scale[s] + affine.shift[s], g, negative_slope);
      // Without statistics of the batch, an x that is not finite must not reach the gradient.
      const float through = grad_weight ? centred * slope[s] + constant[s] : 0.0f;
      out.lane[lane] = narrow<T>(affine.scale[s] * dz + through);
    }
    store_vector(grad_x + dense, out);
  }
}

}  // namespace

int64_t batch_norm_act_scratch(const BatchNormActShape& shape) {
  const int64_t most = ceil_div(shape.batch * shape.plane, kUnroll);
  return 3 * shape.channels * (most < kMaxShares ? most : kMaxShares);
}

template <typename T>
cudaError_t launch_batch_norm_act_stats(const T* x, const BatchNormActShape& shape, float eps,
                                        float* scratch, unsigned* tickets, float* mean, float* rstd,
                                        float* var, cudaStream_t stream) {
  const auto run = [=](auto pixels, auto lanes, const Plan& plan) {
    return simt::launch(batch_norm_act_stats_kernel<T, pixels(), lanes()>, plan.grid, kThreads, 0,
                        stream, x, plan.walk, eps, scratch, tickets, mean, rstd, var);
  };
  return choose_walk<T>(shape, run, x);
}

cudaError_t launch_batch_norm_act_running(const float* running_mean, const float* running_var,
                                          int64_t channels, float eps, float* mean, float* rstd,
                                          cudaStream_t stream) {
  if (channels == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(ceil_div(channels, kThreads)));
  return simt::launch(batch_norm_act_running_kernel, grid, kThreads, 0, stream, running_mean,
                      running_var, channels, eps, mean, rstd);
}

template <typename T>
cudaError_t launch_batch_norm_act_fwd(const T* x, T* y, const BatchNormActShape& shape,
                                      const float* weight, const float* bias, const float* mean,
                                      const float* rstd, float negative_slope,
                                      cudaStream_t stream) {
  const auto run = [=](auto pixels, auto lanes, const Plan& plan) {
    return simt::launch(batch_norm_act_fwd_kernel<T, pixels(), lanes()>, plan.grid, kThreads, 0,
                        stream, x, y, plan.walk, weight, bias, mean, rstd, negative_slope);
  };
  return choose_walk<T>(shape, run, x, y);
}

template <typename T>
cudaError_t launch_batch_norm_act_sums(const T* grad_y, const T* x, const BatchNormActShape& shape,
                                       const float* weight, const float* bias, const float* mean,
                                       const float* rstd, float negative_slope, float* scratch,
                                       unsigned* tickets, float* grad_weight, float* grad_bias,
                                       cudaStream_t stream) {
  const auto run = [=](auto pixels, auto lanes, const Plan& plan) {
    return simt::launch(batch_norm_act_sums_kernel<T, pixels(), lanes()>, plan.grid, kThreads, 0,
                        stream, grad_y, x, plan.walk, weight, bias, mean, rstd, negative_slope,
                        scratch, tickets, grad_weight, grad_bias);
  };
  return choose_walk<T>(shape, run, grad_y, x);
}

template <typename T>
cudaError_t launch_batch_norm_act_bwd(const T* grad_y, const T* x, T* grad_x,
                                      const BatchNormActShape& shape, const float* weight,
                                      const float* bias, const float* mean, const float* rstd,
                                      const float* grad_weight, const float* grad_bias,
                                      float negative_slope, cudaStream_t stream) {
  const auto run = [=](auto pixels, auto lanes, const Plan& plan) {
    return simt::launch(batch_norm_act_bwd_kernel<T, pixels(), lanes()>, plan.grid, kThreads, 0,
                        stream, grad_y, x, grad_x, plan.walk, weight, bias, mean, rstd, grad_weight,
                        grad_bias, negative_slope);
  };
  return choose_walk<T>(shape, run, grad_y, x, grad_x);
}

#define GENIMG_INSTANTIATE(T)                                                                     \
  template cudaError_t launch_batch_norm_act_stats<T>(const T*, const BatchNormActShape&, float,  \
                                                      float*, unsigned*, float*, float*, float*,  \
                                                      cudaStream_t);                              \
  template cudaError_t launch_batch_norm_act_fwd<T>(const T*, T*, const BatchNormActShape&,       \
                                                    const float*, const float*, const float*,     \
                                                    const float*, float, cudaStream_t);           \
  template cudaError_t launch_batch_norm_act_sums<T>(                                             \
      const T*, const T*, const BatchNormActShape&, const float*, const float*, const float*,     \
      const float*, float, float*, unsigned*, float*, float*, cudaStream_t);                      \
  template cudaError_t launch_batch_norm_act_bwd<T>(                                              \
      const T*, const T*, T*, const BatchNormActShape&, const float*, const float*, const float*, \
      const float*, const float*, const float*, float, cudaStream_t);
GENIMG_INSTANTIATE(float)
GENIMG_INSTANTIATE(__half)
GENIMG_INSTANTIATE(__nv_bfloat16)
#undef GENIMG_INSTANTIATE

}  // namespace genimg::cuda
