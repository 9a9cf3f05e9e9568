// The last block's norm and activation: no contraction follows that could apply them as it loads.
#include "stack_end.h"

#include "../channel_plan.h"
#include "epilogue.h"
#include "finalize.h"

namespace genimg::cuda {
namespace {

// z = (raw - mean) * scale + shift, for the channels of a thread.
template <int kSlots>
struct EndNorm {
  float mean[kSlots] = {}, scale[kSlots] = {}, shift[kSlots] = {};

  __device__ __forceinline__ EndNorm(int channel, const ConvNorm& norm) {
    if (norm.mean == nullptr) return;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      mean[s] = norm.mean[channel + s];
      scale[s] = norm.scale[channel + s];
      shift[s] = norm.shift[channel + s];
    }
  }
};

template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads)
    conv_stack_end_fwd_kernel(const T* raw, T* y, WalkShape shape, ConvStackEnd end) {
  const Walk<true, kLanes> walk(shape);
  if (walk.end == 0) return;
  const EndNorm<kLanes> norm(walk.channel, end.norm);
  for (unsigned i = walk.first; i < walk.end; i += walk.stride) {
    const auto in = load_vector<kLanes>(raw + walk.offset(i));
    Vector<T, kLanes> out;
#pragma unroll
    for (int s = 0; s < kLanes; ++s) {
      const float z = (widen(in.lane[s]) - norm.mean[s]) * norm.scale[s] + norm.shift[s];
      out.lane[s] = narrow<T>(activate(leaky(z, z, end.negative_slope), end.activation, 1));
    }
    store_vector(y + walk.offset(i), out);
  }
}

template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads)
    conv_stack_end_bwd_kernel(const T* grad_y, const T* y, const T* raw, T* dz, WalkShape shape,
                              ConvStackEnd end, ConvNormGrads grads, float* scratch,
                              unsigned* tickets) {
  const Walk<true, kLanes> walk(shape);
  const int64_t channels = end.channels, numbers = channels * gridDim.y;
  const bool normed = end.norm.mean != nullptr, curved = end.activation != Activation::kNone;
  Sums<kLanes> all;
  if (walk.end > 0) {
    const EndNorm<kLanes> norm(walk.channel, end.norm);
    for (unsigned i = walk.first; i < walk.end; i += walk.stride) {
      const auto grad = load_vector<kLanes>(grad_y + walk.offset(i));
      Vector<T, kLanes> in = {}, out = {}, result;
      if (normed) in = load_vector<kLanes>(raw + walk.offset(i));
      if (curved) out = load_vector<kLanes>(y + walk.offset(i));
#pragma unroll
      for (int s = 0; s < kLanes; ++s) {
        const float centred = widen(in.lane[s]) - norm.mean[s], value = widen(out.lane[s]);
        const float z = centred * norm.scale[s] + norm.shift[s];
        float g = widen(grad.lane[s]);
        if (end.activation == Activation::kTanh) g *= 1 - value * value;
        if (end.activation == Activation::kSigmoid) g *= value * (1 - value);
        result.lane[s] = narrow<T>(leaky(z, g, end.negative_slope));
        const float stored = widen(result.lane[s]);
        all.dz[s] += stored;
        all.dz_x[s] += stored * centred;
      }
      store_vector(dz + walk.offset(i), result);
    }
  }
  merge_columns(&all, shape.lanes);
  if (walk.row == 0 && walk.end > 0) {
#pragma unroll
    for (int s = 0; s < kLanes; ++s) {
      const int64_t at = blockIdx.y * channels + walk.channel + s;
      scratch[at] = all.dz[s];
      scratch[numbers + at] = all.dz_x[s];
    }
  }
  if (!is_last_block(tickets)) return;
  over_channels_of_block(shape, kLanes, [&](int64_t c) {
    double sum = 0, weighted = 0;
    for (int64_t at = c; at < numbers; at += channels) {
      sum += scratch[at];
      weighted += scratch[numbers + at];
    }
    finish_grads(grads, c, static_cast<float>(shape.channel_values), static_cast<float>(sum),
                 static_cast<float>(weighted));
  });
}

BatchNormActShape shape_of(const ConvStackEnd& end) {
  return {true, end.pixels, end.channels, 1, end.channels, 1, end.channels};
}

}  // namespace

template <typename T>
cudaError_t launch_conv_stack_end_fwd(const ConvStackEnd& end, const T* raw, T* y,
                                      cudaStream_t stream) {
  const auto run = [=](auto pixels, auto lanes, const Plan& plan) {
    if constexpr (!pixels()) return cudaErrorInvalidValue;
    return simt::launch(conv_stack_end_fwd_kernel<T, lanes()>, plan.grid, kThreads, 0, stream, raw,
                        y, plan.walk, end);
  };
  return choose_walk<T>(shape_of(end), run, raw, y);
}

ConvSumsWorkspace conv_stack_end_sums(const ConvStackEnd& end) {
  return {batch_norm_act_scratch(shape_of(end)), end.channels};
}

template <typename T>
cudaError_t launch_conv_stack_end_bwd(const ConvStackEnd& end, const T* grad_y, const T* y,
                                      const T* raw, T* dz, const ConvNormGrads& grads,
                                      float* scratch, unsigned* tickets, cudaStream_t stream) {
  const auto run = [=](auto pixels, auto lanes, const Plan& plan) {
    if constexpr (!pixels()) return cudaErrorInvalidValue;
    return simt::launch(conv_stack_end_bwd_kernel<T, lanes()>, plan.grid, kThreads, 0, stream,
                        grad_y, y, raw, dz, plan.walk, end, grads, scratch, tickets);
  };
  return choose_walk<T>(shape_of(end), run, grad_y, y, raw, dz);
}

#define GENIMG_INSTANTIATE(T)                                                                   \
  template cudaError_t launch_conv_stack_end_fwd<T>(const ConvStackEnd&, const T*, T*,          \
                                                    cudaStream_t);                              \
  template cudaError_t launch_conv_stack_end_bwd<T>(const ConvStackEnd&, const T*, const T*,    \
                                                    const T*, T*, const ConvNormGrads&, float*, \
                                                    unsigned*, cudaStream_t);
GENIMG_INSTANTIATE(float)
GENIMG_INSTANTIATE(__half)
GENIMG_INSTANTIATE(__nv_bfloat16)
#undef GENIMG_INSTANTIATE

}  // namespace genimg::cuda
