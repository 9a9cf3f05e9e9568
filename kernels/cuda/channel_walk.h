// How the threads of a grid share a tensor by channels, in NCHW and in NHWC memory, and how they
// merge their results for a channel, always in the same order.
//
// A block has `lanes` columns of threads. In planes there is one, and a block works on one channel;
// in pixels each column has its vector of channels. blockIdx.x counts channels or groups of
// columns, blockIdx.y the shares of the values.
#pragma once

#include "batch_norm_act.h"
#include "vector.h"

namespace genimg::cuda {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;  // vectors that a thread reads before it computes

struct WalkShape {
  BatchNormActShape tensor;
  int lanes;              // a power of two up to 32
  unsigned line;          // vectors in a plane; in pixels, of channels
  unsigned steps;         // vectors of a channel, or pixels
  double channel_values;  // batch * plane
};

// kPixels: NHWC. Each thread has kSlots channels from `channel` on, and visits vectors
// `first`, `first + stride`, ... below `end`.
template <bool kPixels, int kLanes>
struct Walk {
  static constexpr int kSlots = kPixels ? kLanes : 1;
  static __device__ __forceinline__ int slot(int lane) { return kPixels ? lane : 0; }

  __device__ __forceinline__ explicit Walk(const WalkShape& walk_shape) : shape(walk_shape) {
    if constexpr (kPixels) {
      const unsigned column = blockIdx.x * shape.lanes + threadIdx.x % shape.lanes;
      const unsigned rows = kThreads / shape.lanes;
      row = threadIdx.x / shape.lanes;
      channel = static_cast<int>(column) * kLanes;
      first = blockIdx.y * rows + row;
      stride = gridDim.y * rows;
      end = column < shape.line ? shape.steps : 0;
    } else {
      row = threadIdx.x;
      channel = static_cast<int>(blockIdx.x);
      first = blockIdx.y * kThreads + threadIdx.x;
      stride = gridDim.y * kThreads;
      end = shape.steps;
    }
  }

  // The offset of a vector in x, and in a dense tensor.
  __device__ __forceinline__ int64_t offset(unsigned i) const {
    const BatchNormActShape& t = shape.tensor;
    if constexpr (kPixels) return i * t.pixel_stride + channel;
    const unsigned image = i / shape.line;
    return image * t.batch_stride + channel * t.channel_stride +
           static_cast<int64_t>(i - image * shape.line) * kLanes;
  }
  __device__ __forceinline__ int64_t dense_offset(unsigned i) const {
    const BatchNormActShape& t = shape.tensor;
    if constexpr (kPixels) return i * t.channels + channel;
    const unsigned image = i / shape.line;
    return (image * t.channels + channel) * t.plane +
           static_cast<int64_t>(i - image * shape.line) * kLanes;
  }

  const WalkShape& shape;
  unsigned row, first, stride, end;
  int channel;
};

// Merges the states of a column's threads into that of its first thread. State has kNumbers floats,
// number(i), and merge(float other[kNumbers]).
template <typename State>
__device__ void merge_columns(State* state, int lanes) {
  SIMT_SHARED(float, others, [State::kNumbers][kThreads]);
  const int thread = threadIdx.x, row = thread / lanes;
  for (int step = kThreads / lanes / 2; step > 0; step /= 2) {
    if (row >= step && row < 2 * step) {
#pragma unroll
      for (int i = 0; i < State::kNumbers; ++i) others[i][thread] = state->number(i);
    }
    __syncthreads();
    if (row < step) {
      float other[State::kNumbers];
#pragma unroll
      for (int i = 0; i < State::kNumbers; ++i) other[i] = others[i][thread + step * lanes];
      state->merge(other);
    }
  }
}

// Whether this block is the last of its blockIdx.x to arrive; it then sees all that the others have
// written. Which block is last may vary; the ticket is 0 again afterwards.
__device__ inline bool is_last_block(unsigned* tickets) {
  SIMT_SHARED(bool, is_last);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(tickets + blockIdx.x, 1u) == gridDim.y - 1;
    __threadfence();
    if (is_last) tickets[blockIdx.x] = 0;
  }
  __syncthreads();
  return is_last;
}

// Visits the channels of this block whose results a thread merges at the end.
template <typename Visit>
__device__ __forceinline__ void over_channels_of_block(const WalkShape& shape, int per_column,
                                                       Visit visit) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * shape.lanes * per_column;
  const int64_t rest = shape.tensor.channels - first;
  const int count = static_cast<int>(min(rest, static_cast<int64_t>(shape.lanes) * per_column));
  for (int c = threadIdx.x; c < count; c += kThreads) visit(first + c);
}

// Sums of dz, and of dz (x - mean), per channel.
template <int kSlots>
struct Sums {
  static constexpr int kNumbers = 2 * kSlots;
  float dz[kSlots] = {}, dz_x[kSlots] = {};

  __device__ __forceinline__ float number(int i) const {
    return i < kSlots ? dz[i] : dz_x[i - kSlots];
  }
  __device__ __forceinline__ void merge(const float (&other)[kNumbers]) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      dz[s] += other[s];
      dz_x[s] += other[kSlots + s];
    }
  }
};

}  // namespace genimg::cuda
