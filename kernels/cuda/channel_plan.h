// Plans a walk over a tensor's channels: the number of blocks, and whether it can read vectors.
#pragma once

#include <type_traits>

#include "channel_walk.h"

namespace genimg::cuda {

constexpr int64_t kMaxShares = 128;  // of a channel; their partial results are merged at the end
constexpr int64_t kBlocksWanted = 1024;  // enough for every multiprocessor to have several

// The number of shares of a channel's values, each large enough for a block.
inline int64_t count_shares(int64_t steps, int64_t rows, int64_t groups) {
  const int64_t useful = ceil_div(steps, rows * kUnroll);
  const int64_t wanted = ceil_div(kBlocksWanted, groups);
  const int64_t shares = useful < wanted ? useful : wanted;
  return shares < 1 ? 1 : shares < kMaxShares ? shares : kMaxShares;
}

struct Plan {
  WalkShape walk;
  dim3 grid;
};

inline Plan plan_of(const BatchNormActShape& shape, int lanes_of_vector) {
  const int64_t values = shape.batch * shape.plane;
  Plan plan{{shape, 1, 0, 0, static_cast<double>(values)}, {}};
  int64_t groups = shape.channels;
  if (shape.pixels) {
    plan.walk.line = static_cast<unsigned>(shape.channels / lanes_of_vector);
    plan.walk.steps = static_cast<unsigned>(values);
    while (plan.walk.lanes < 32 && plan.walk.lanes < static_cast<int>(plan.walk.line)) {
      plan.walk.lanes *= 2;
    }
    groups = ceil_div(plan.walk.line, plan.walk.lanes);
  } else {
    plan.walk.line = static_cast<unsigned>(shape.plane / lanes_of_vector);
    plan.walk.steps = static_cast<unsigned>(shape.batch * plan.walk.line);
  }
  const int64_t shares = count_shares(plan.walk.steps, kThreads / plan.walk.lanes, groups);
  plan.grid = dim3(static_cast<unsigned>(groups), static_cast<unsigned>(shares));
  return plan;
}

template <typename T, typename... P>
bool fits_vectors(const BatchNormActShape& shape, P... pointers) {
  constexpr int64_t kSize = Vector<T>::kSize;
  const int64_t lengths = shape.pixels ? shape.channels | shape.pixel_stride
                                       : shape.plane | shape.batch_stride | shape.channel_stride;
  return lengths % kSize == 0 && are_aligned(pointers...);
}

// Calls run(std::bool_constant<pixels>, std::integral_constant<int, lanes>, plan)
template <typename T, typename Run, typename... P>
cudaError_t choose_walk(const BatchNormActShape& shape, Run run, P... pointers) {
  constexpr int kSize = Vector<T>::kSize;
  if (shape.batch * shape.plane * shape.channels == 0) return cudaSuccess;
  if (shape.batch * shape.plane >= kBatchNormActMaxValues ||
      shape.channels >= kBatchNormActMaxChannels) {
    return cudaErrorInvalidValue;
  }
  const bool vectors = fits_vectors<T>(shape, pointers...);
  const Plan plan = plan_of(shape, vectors ? kSize : 1);
  using True = std::true_type;
  using False = std::false_type;
  using Wide = std::integral_constant<int, kSize>;
  using Narrow = std::integral_constant<int, 1>;
  if (shape.pixels) return vectors ? run(True{}, Wide{}, plan) : run(True{}, Narrow{}, plan);
  return vectors ? run(False{}, Wide{}, plan) : run(False{}, Narrow{}, plan);
}

}  // namespace genimg::cuda
