// What happens to a result before it is stored, and the sums over its channels.
#pragma once

#include "conv_prologue.h"
#include "conv_tile.h"

namespace genimg::cuda {

__device__ __forceinline__ float activate(float value, Activation activation, float slope) {
  switch (activation) {
    case Activation::kLeakyRelu:
      return leaky(value, slope);
    case Activation::kTanh:
      return tanhf(value);
    case Activation::kSigmoid:
      return 1 / (1 + expf(-value));
    default:
      return value;
  }
}

// An epilogue: what happens to neighbouring values of a row, the first of them at `column` of the
// row at `offset`, before they are stored. Those from `columns` on are not stored.
struct BiasActivation {
  static constexpr bool kSums = false;
  ConvEpilogue given;

  template <int kLanes>
  __device__ __forceinline__ void operator()(float (&values)[kLanes], int64_t, int64_t column,
                                             int64_t columns) const {
    if (given.bias != nullptr) {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        if (column + i < columns) values[i] += given.bias[column + i];
      }
    }
    if (given.activation == Activation::kNone) return;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      values[i] = activate(values[i], given.activation, given.negative_slope);
    }
  }
};

// Any of ConvEpilogue's.
template <typename T>
struct AnyEpilogue {
  static constexpr bool kSums = true;
  ConvEpilogue given;

  template <int kLanes>
  __device__ __forceinline__ void operator()(float (&values)[kLanes], int64_t offset,
                                             int64_t column, int64_t columns) const {
    BiasActivation{given}(values, offset, column, columns);
    if (given.gate_y == nullptr) return;
    const T* const y = static_cast<const T*>(given.gate_y) + offset;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const int64_t c = column + i;
      if (c >= columns) continue;
      const float z =
          (widen(y[c]) - given.gate_mean[c]) * given.gate_scale[c] + given.gate_shift[c];
      values[i] *= z > 0 ? 1.0f : given.gate_slope;
    }
  }
};

// Of a channel: count, mean and sum of squares about it; or, behind a gate, count and two sums.
struct ChannelSums {
  float count, first, second;
};

// The sums of [begin, end), which get(i) has. Means are added as distances from the first one, so
// that little is lost where they are large and near each other.
template <typename Get>
__device__ __forceinline__ ChannelSums combine(bool gated, int64_t begin, int64_t end, Get get) {
  ChannelSums all = {0, 0, 0};
  if (begin >= end) return all;
  const float pivot = gated ? 0 : get(begin).first;
  for (int64_t i = begin; i < end; ++i) {
    const ChannelSums part = get(i);
    all.count += part.count;
    all.first += gated ? part.first : part.count * (part.first - pivot);
    if (gated) all.second += part.second;
  }
  if (gated || all.count == 0) return all;
  all.first = pivot + all.first / all.count;
  for (int64_t i = begin; i < end; ++i) {
    const ChannelSums part = get(i);
    const float distance = part.first - all.first;
    all.second += part.second + part.count * distance * distance;
  }
  return all;
}

// The sums of the block's columns, whose `rows` first rows in shared memory hold what was stored;
// the last block of a column of tiles adds up all of them, in their order.
template <int kThreads, typename T, typename Result, typename Offset>
__device__ __forceinline__ void add_sums(Result result, int rows, const ConvEpilogue& epilogue,
                                         int64_t first_column, int64_t columns, int tile,
                                         int64_t piece, int64_t pieces, Offset offset_of) {
  constexpr int kColumns = Result::kColumns, kGroups = kThreads / kColumns;
  SIMT_SHARED(ChannelSums, parts, [kGroups][kColumns]);
  SIMT_SHARED(unsigned, is_last, [1]);
  const int column = static_cast<int>(threadIdx.x) % kColumns;
  const int group = static_cast<int>(threadIdx.x) / kColumns;
  const int64_t c = first_column + column;
  const bool gated = epilogue.gate_y != nullptr, inside = c < columns;
  const auto group_of = [&](int64_t i) { return parts[i][column]; };

  __syncthreads();  // every row has been stored
  const T* const y = static_cast<const T*>(epilogue.gate_y);
  const float mean = gated && inside ? epilogue.gate_mean[c] : 0;
  const int64_t own = rows > group ? (rows - group + kGroups - 1) / kGroups : 0;
  parts[group][column] = combine(gated, 0, inside ? own : 0, [&](int64_t i) -> ChannelSums {
    const int row = group + static_cast<int>(i) * kGroups;
    const float value = *result.at(row, column);
    const float weight = gated ? widen(y[offset_of(row) + c]) - mean : 0;
    return {1, value, value * weight};
  });
  __syncthreads();
  float* const scratch = epilogue.sums.scratch;
  if (group == 0 && inside) {
    const ChannelSums sums = combine(gated, 0, kGroups, group_of);
    float* const to = scratch + (piece * columns + c) * 3;
    to[0] = sums.count;
    to[1] = sums.first;
    to[2] = sums.second;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const unsigned arrived = atomicAdd(&epilogue.sums.tickets[tile], 1u);
    __threadfence();
    is_last[0] = arrived == static_cast<unsigned>(pieces - 1);
  }
  __syncthreads();
  if (!is_last[0]) return;
  const int64_t each = (pieces + kGroups - 1) / kGroups;
  const int64_t begin = group * each, end = begin + each < pieces ? begin + each : pieces;
  parts[group][column] = combine(gated, begin, inside ? end : begin, [&](int64_t i) -> ChannelSums {
    const float* const from = scratch + (i * columns + c) * 3;
    return {from[0], from[1], from[2]};
  });
  __syncthreads();
  if (threadIdx.x == 0) epilogue.sums.tickets[tile] = 0;
  if (group != 0 || !inside) return;
  const ChannelSums sums = combine(gated, 0, kGroups, group_of);
  epilogue.sums.first[c] = sums.first;
  if (gated) {
    epilogue.sums.second[c] = sums.second;
  } else {
    epilogue.sums.second[c] = 1 / sqrtf(sums.second / sums.count + epilogue.sums.eps);
    epilogue.sums.third[c] = sums.second / (sums.count - 1);
  }
}

}  // namespace genimg::cuda
