// Sums, per channel, of the values that a grid of tiles has stored.
//
// A block writes the sums of its tile as a row in memory. The last block of a bundle of tiles adds
// the rows of the bundle in order, and the last bundle adds those of all bundles. Which block is
// last may vary; the order of summation does not. No block adds more rows than about the square
// root of the number of tiles.
#pragma once

#include "epilogue.h"
#include "finalize.h"

namespace genimg::cuda {

constexpr int64_t kBundle = 64;                           // tiles
constexpr int64_t kSummedRows = 64, kSummedColumns = 64;  // of a tile, at least

// The workspace for the sums of `tiles` tiles.
inline ConvSumsWorkspace sums_workspace(int64_t tiles, int64_t columns) {
  const int64_t bundles = ceil_div(tiles, kBundle);
  return {4 * columns * (tiles + bundles), ceil_div(columns, kSummedColumns) * (1 + bundles)};
}

// Without a gate: count, pivot (one of the values), mean minus pivot, and sum of squares about the
// mean; the pivot keeps the digits of values far from 0. With a gate: count, unused, and two sums.
struct ChannelSums {
  float count, pivot, first, second;
};

__device__ __forceinline__ ChannelSums sums_of(float value) {
  const float pivot = value - value == 0 ? value : 0;  // never Inf, whose distance would be NaN
  return {1, pivot, value - pivot, 0};
}

// Combines the sums get(i) for i in [begin, end).
template <typename Get>
__device__ __forceinline__ ChannelSums combine(bool gated, int64_t begin, int64_t end, Get get) {
  ChannelSums all = {0, 0, 0, 0};
  for (int64_t i = begin; i < end; ++i) {
    const ChannelSums part = get(i);
    if (part.count == 0) continue;
    if (all.count == 0) all.pivot = part.pivot;
    all.count += part.count;
    if (gated) {
      all.first += part.first;
      all.second += part.second;
    } else {
      all.first += part.count * ((part.pivot - all.pivot) + part.first);
    }
  }
  if (gated || all.count == 0) return all;
  all.first /= all.count;
  for (int64_t i = begin; i < end; ++i) {
    const ChannelSums part = get(i);
    const float distance = ((part.pivot - all.pivot) + part.first) - all.first;
    if (part.count > 0) all.second += part.second + part.count * distance * distance;
  }
  return all;
}

// Whether this block is the last of `count` to arrive; it then sees all that the others have
// written.
__device__ __forceinline__ bool is_last_of(int64_t count, unsigned* ticket) {
  SIMT_SHARED(unsigned, is_last, [1]);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const unsigned arrived = atomicAdd(ticket, 1u);
    __threadfence();
    is_last[0] = arrived == static_cast<unsigned>(count - 1);
    if (is_last[0]) *ticket = 0;
  }
  __syncthreads();
  return is_last[0];
}

// The columns of a block's result, and their rows in memory.
template <int kThreads, int kColumns>
class ColumnSums {
 public:
  __device__ ColumnSums(bool gated, int64_t first_column, int64_t columns, float* scratch)
      : channel(first_column + static_cast<int>(threadIdx.x) % kColumns),
        inside(channel < columns),
        gated_(gated),
        columns_(columns),
        scratch_(scratch) {}

  static constexpr int kGroups = kThreads / kColumns;
  static __device__ __forceinline__ int column() {
    return static_cast<int>(threadIdx.x) % kColumns;
  }
  static __device__ __forceinline__ int group() { return static_cast<int>(threadIdx.x) / kColumns; }

  const int64_t channel;
  const bool inside;

  // Merges the sums of the groups of threads into those of the first group.
  __device__ __forceinline__ ChannelSums merge(const ChannelSums& own) const {
    SIMT_SHARED(ChannelSums, parts, [kGroups][kColumns]);
    parts[group()][column()] = own;
    __syncthreads();
    if (group() != 0) return own;
    return combine(gated_, 0, kGroups, [&](int64_t i) { return parts[i][column()]; });
  }
  __device__ __forceinline__ ChannelSums merge_rows(int64_t begin, int64_t end) const {
    const int64_t each = (end - begin + kGroups - 1) / kGroups;
    const int64_t from = begin + group() * each, to = from + each < end ? from + each : end;
    return merge(combine(gated_, from, inside ? to : from, [&](int64_t i) {
      const float4 row = *at(i);
      return ChannelSums{row.x, row.y, row.z, row.w};
    }));
  }
  __device__ __forceinline__ void write_row(int64_t i, const ChannelSums& sums) const {
    if (group() == 0 && inside) *at(i) = {sums.count, sums.pivot, sums.first, sums.second};
  }

 private:
  __device__ __forceinline__ float4* at(int64_t i) const {
    return reinterpret_cast<float4*>(scratch_) + i * columns_ + channel;
  }

  bool gated_;
  int64_t columns_;
  float* scratch_;
};

// Adds the sums of the block's columns; the first `rows` rows in shared memory have the stored
// values. The block is tile number `piece` of `pieces`, in column `tile` of the tiles.
template <int kThreads, typename T, typename Result, typename Offset>
__device__ __forceinline__ void add_sums(Result result, int rows, const ConvEpilogue& epilogue,
                                         int64_t first_column, int64_t columns, int tile,
                                         int64_t piece, int64_t pieces, Offset offset_of) {
  using Columns = ColumnSums<kThreads, Result::kColumns>;
  const bool gated = epilogue.gate_y != nullptr;
  const Columns all(gated, first_column, columns, epilogue.sums.scratch);
  const int column = Columns::column(), group = Columns::group();

  __syncthreads();  // every row has been stored
  const T* const y = static_cast<const T*>(epilogue.gate_y);
  const bool centred = gated && all.inside && epilogue.gate.mean != nullptr;
  const float mean = centred ? epilogue.gate.mean[all.channel] : 0;
  const int64_t own = rows > group ? (rows - group + Columns::kGroups - 1) / Columns::kGroups : 0;
  ChannelSums sums = all.merge(combine(gated, 0, all.inside ? own : 0, [&](int64_t i) {
    const int row = group + static_cast<int>(i) * Columns::kGroups;
    const float value = *result.at(row, column);
    if (!gated) return sums_of(value);
    return ChannelSums{1, 0, value, value * (widen(y[offset_of(row) + all.channel]) - mean)};
  }));
  all.write_row(piece, sums);

  const int64_t bundles = (pieces + kBundle - 1) / kBundle, bundle = piece / kBundle;
  const int64_t begin = bundle * kBundle, end = begin + kBundle < pieces ? begin + kBundle : pieces;
  unsigned* const tickets = epilogue.sums.tickets + tile * (bundles + 1);
  if (!is_last_of(end - begin, tickets + 1 + bundle)) return;
  sums = all.merge_rows(begin, end);
  if (bundles > 1) {
    all.write_row(pieces + bundle, sums);
    if (!is_last_of(bundles, tickets)) return;
    sums = all.merge_rows(pieces, pieces + bundles);
  }
  if (group != 0 || !all.inside) return;
  if (gated) {
    finish_grads(epilogue.sums.grads, all.channel, sums.count, sums.first, sums.second);
  } else {
    finish_statistics(epilogue.sums.statistics, all.channel, sums.count, sums.pivot + sums.first,
                      sums.second);
  }
}

}  // namespace genimg::cuda
