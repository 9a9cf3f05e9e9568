#include "batch_norm_act_single_pass.h"

#include "channel_norm.h"
#include "channel_plan.h"

namespace genimg::cuda {
namespace {

constexpr int kSectorBytes = 32;         // the least that a block reads of a pixel
constexpr size_t kMostBytes = 64 << 10;  // of shared memory, beside the threads' partial results
constexpr int64_t kFewestBlocks = 32;    // with fewer, more blocks for a channel are faster

struct ChipPlan {
  WalkShape walk;
  int64_t groups;
  size_t bytes;
};

// In pixels, columns of few channels, so that many pixels fit.
ChipPlan chip_plan(WalkShape walk, size_t vector_bytes, int tensors) {
  int64_t groups = walk.tensor.channels;
  if (walk.tensor.pixels) {
    walk.lanes = kSectorBytes / static_cast<int>(vector_bytes);
    groups = ceil_div(walk.line, walk.lanes);
  }
  const int64_t visits = ceil_div(walk.steps, kThreads / walk.lanes);
  return {walk, groups, static_cast<size_t>(visits) * kThreads * vector_bytes * tensors};
}

// The number of channels of a block.
template <typename T, bool kPixels>
constexpr int kChannels = kPixels ? kSectorBytes / static_cast<int>(sizeof(T)) : 1;

template <typename T, bool kPixels, int kLanes>
__global__ void __launch_bounds__(kThreads)
    batch_norm_act_single_pass_fwd_kernel(const T* x, T* y, WalkShape shape, const float* weight,
                                          const float* bias, float eps, float negative_slope,
                                          float* mean, float* rstd, float* var) {
  using ThisWalk = Walk<kPixels, kLanes>;
  constexpr int kSlots = ThisWalk::kSlots;
  SIMT_DYN_SHARED(unsigned char, room);
  SIMT_SHARED(float, found, [2][kChannels<T, kPixels>]);  // for all threads
  // Every kThreads-th vector belongs to this thread, so that it needs no barrier to read it again.
  auto* const kept = reinterpret_cast<Vector<T, kLanes>*>(room) + threadIdx.x;
  const ThisWalk walk(shape);
  const int column = kPixels ? static_cast<int>(threadIdx.x) % shape.lanes * kSlots : 0;
  Moments<kSlots> all;
  float pivot[kSlots] = {};
  read_pivots(pivot, x, walk);
  int visits = 0;
#pragma unroll kUnroll
  for (unsigned i = walk.first; i < walk.end; i += walk.stride) {
    const auto values = load_vector<kLanes>(x + walk.offset(i));
    kept[visits++ * kThreads] = values;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      const int s = ThisWalk::slot(lane);
      all.mean[s] += widen(values.lane[lane]) - pivot[s];
    }
  }
  if (visits > 0) {
    all.count = static_cast<float>(visits * (kLanes / kSlots));
#pragma unroll
    for (int s = 0; s < kSlots; ++s) all.mean[s] /= all.count;
    for (int visit = 0; visit < visits; ++visit) {
      const auto values = kept[visit * kThreads];
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        const int s = ThisWalk::slot(lane);
        const float d = widen(values.lane[lane]) - pivot[s] - all.mean[s];
        all.m2[s] += d * d;
      }
    }
  }
  merge_columns(&all, shape.lanes);
  if (walk.row == 0 && walk.end > 0) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int c = walk.channel + s;
      const double deviations = all.m2[s], total = shape.channel_values;
      mean[c] = found[0][column + s] = pivot[s] + all.mean[s];
      rstd[c] = found[1][column + s] = static_cast<float>(1 / sqrt(deviations / total + eps));
      var[c] = static_cast<float>(deviations / (total - 1));
    }
  }
  __syncthreads();
  if (walk.end == 0) return;
  const Affine<kSlots> affine(walk.channel, weight, bias, found[0] + column, found[1] + column);
  for (int visit = 0; visit < visits; ++visit) {
    auto values = kept[visit * kThreads];
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      const int s = ThisWalk::slot(lane);
      const float z =
          (widen(values.lane[lane]) - affine.mean[s]) * affine.scale[s] + affine.shift[s];
      values.lane[lane] = narrow<T>(leaky(z, z, negative_slope));
    }
    store_vector(y + walk.dense_offset(walk.first + visit * walk.stride), values);
  }
}

template <typename T, bool kPixels, int kLanes>
__global__ void __launch_bounds__(kThreads)
    batch_norm_act_single_pass_bwd_kernel(const T* grad_y, const T* x, T* grad_x, WalkShape shape,
                                          const float* weight, const float* bias, const float* mean,
                                          const float* rstd, float negative_slope,
                                          float* grad_weight, float* grad_bias) {
  using ThisWalk = Walk<kPixels, kLanes>;
  constexpr int kSlots = ThisWalk::kSlots;
  SIMT_DYN_SHARED(unsigned char, room);
  SIMT_SHARED(float, found, [2][kChannels<T, kPixels>]);  // for all threads
  auto* const kept = reinterpret_cast<Vector<T, kLanes>*>(room) + threadIdx.x;
  const ThisWalk walk(shape);
  const int column = kPixels ? static_cast<int>(threadIdx.x) % shape.lanes * kSlots : 0;
  const bool inside = walk.end > 0;
  const int channel = inside ? walk.channel : 0;
  const Affine<kSlots> affine(channel, weight, bias, mean + channel, rstd + channel);
  // Turns an output's gradient into dz.
  const auto through = [&](float centred, float gradient, int s) {
    return leaky(centred * affine.scale[s] + affine.shift[s], gradient, negative_slope);
  };
  Sums<kSlots> all;
  int visits = 0;
#pragma unroll 2
  for (unsigned i = walk.first; i < walk.end; i += walk.stride) {
    const auto in = load_vector<kLanes>(x + walk.offset(i));
    const auto grad = load_vector<kLanes>(grad_y + walk.dense_offset(i));
    kept[2 * visits * kThreads] = in;
    kept[(2 * visits + 1) * kThreads] = grad;
    ++visits;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      const int s = ThisWalk::slot(lane);
      const float centred = widen(in.lane[lane]) - affine.mean[s];
      const float dz = through(centred, widen(grad.lane[lane]), s);
      all.dz[s] += dz;
      all.dz_x[s] += dz * centred;
    }
  }
  merge_columns(&all, shape.lanes);
  // grad_x = scale dz + (x - mean) slope + constant
  if (walk.row == 0 && inside) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int c = channel + s;
      const float share = -affine.scale[s] / static_cast<float>(shape.channel_values);
      const float normalised = all.dz_x[s] * rstd[c];
      grad_weight[c] = normalised;
      grad_bias[c] = all.dz[s];
      found[0][column + s] = share * rstd[c] * normalised;
      found[1][column + s] = share * all.dz[s];
    }
  }
  __syncthreads();
  for (int visit = 0; visit < visits; ++visit) {
    const auto in = kept[2 * visit * kThreads];
    auto out = kept[(2 * visit + 1) * kThreads];
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      const int s = ThisWalk::slot(lane);
      const float centred = widen(in.lane[lane]) - affine.mean[s];
      const float dz = through(centred, widen(out.lane[lane]), s);
      out.lane[lane] =
          narrow<T>(affine.scale[s] * dz + (centred * found[0][column + s] + found[1][column + s]));
    }
    store_vector(grad_x + walk.dense_offset(walk.first + visit * walk.stride), out);
  }
}

}  // namespace

template <typename T>
bool batch_norm_act_single_pass_serves(const BatchNormActShape& shape, const T* x, const T* grad_y,
                                       const T* out) {
  if (shape.batch * shape.plane * shape.channels == 0) return false;
  const int lanes = fits_vectors<T>(shape, x, grad_y, out) ? Vector<T>::kSize : 1;
  const ChipPlan plan =
      chip_plan(plan_of(shape, lanes).walk, lanes * sizeof(T), grad_y == nullptr ? 1 : 2);
  return plan.bytes <= kMostBytes && plan.groups >= kFewestBlocks;
}

template <typename T>
cudaError_t launch_batch_norm_act_single_pass_fwd(const T* x, T* y, const BatchNormActShape& shape,
                                                  const float* weight, const float* bias, float eps,
                                                  float negative_slope, float* mean, float* rstd,
                                                  float* var, cudaStream_t stream) {
  const auto run = [=](auto pixels, auto lanes, const Plan& whole) {
    const ChipPlan plan = chip_plan(whole.walk, lanes() * sizeof(T), 1);
    return simt::launch(batch_norm_act_single_pass_fwd_kernel<T, pixels(), lanes()>,
                        dim3(static_cast<unsigned>(plan.groups)), kThreads, plan.bytes, stream, x,
                        y, plan.walk, weight, bias, eps, negative_slope, mean, rstd, var);
  };
  return choose_walk<T>(shape, run, x, y);
}

template <typename T>
cudaError_t launch_batch_norm_act_single_pass_bwd(const T* grad_y, const T* x, T* grad_x,
                                                  const BatchNormActShape& shape,
                                                  const float* weight, const float* bias,
                                                  const float* mean, const float* rstd,
                                                  float negative_slope, float* grad_weight,
                                                  float* grad_bias, cudaStream_t stream) {
  const auto run = [=](auto pixels, auto lanes, const Plan& whole) {
    const ChipPlan plan = chip_plan(whole.walk, lanes() * sizeof(T), 2);
    return simt::launch(batch_norm_act_single_pass_bwd_kernel<T, pixels(), lanes()>,
                        dim3(static_cast<unsigned>(plan.groups)), kThreads, plan.bytes, stream,
                        grad_y, x, grad_x, plan.walk, weight, bias, mean, rstd, negative_slope,
                        grad_weight, grad_bias);
  };
  return choose_walk<T>(shape, run, grad_y, x, grad_x);
}

#define GENIMG_INSTANTIATE(T)                                                                      \
  template bool batch_norm_act_single_pass_serves<T>(const BatchNormActShape&, const T*, const T*, \
                                                     const T*);                                    \
  template cudaError_t launch_batch_norm_act_single_pass_fwd<T>(                                   \
      const T*, T*, const BatchNormActShape&, const float*, const float*, float, float, float*,    \
      float*, float*, cudaStream_t);                                                               \
  template cudaError_t launch_batch_norm_act_single_pass_bwd<T>(                                   \
      const T*, const T*, T*, const BatchNormActShape&, const float*, const float*, const float*,  \
      const float*, float, float*, float*, cudaStream_t);
GENIMG_INSTANTIATE(float)
GENIMG_INSTANTIATE(__half)
GENIMG_INSTANTIATE(__nv_bfloat16)
#undef GENIMG_INSTANTIATE

}  // namespace genimg::cuda
