// The loop over a block's stages in shared memory, and the output of its result.
#pragma once

#include "mma.h"
#include "reduction.h"

namespace genimg::cuda {

// Resident blocks per multiprocessor. Without this number ptxas limits the registers by a guess,
// and spills.
template <typename Config, bool kFused>
constexpr int kResident = Config::kM * Config::kN == 128 * 128 && !kFused ? 2 : 1;

// Plain kernels copy their operands and add a bias; fused kernels have every prologue and epilogue.
template <typename T, bool kFused>
using Prologue = std::conditional_t<kFused, AnyPrologue<T>, NoPrologue<T>>;
template <typename T, bool kFused>
using Epilogue = std::conditional_t<kFused, AnyEpilogue<T>, BiasActivation>;

// Sums `steps` products. Loader::fetch(a, b) starts to fill the tiles of the next step, in order,
// and deposit(a, b) finishes; the copies of kStages - 1 steps are in flight at a time.
template <int kStages, typename T, typename Product, typename Loader>
__device__ __forceinline__ void multiply(T* shared, Product& product, Loader& loader,
                                         int64_t steps) {
  using A = typename Product::A;
  using B = typename Product::B;
  const auto a_of = [=](int stage) {
    return A{shared + static_cast<int64_t>(stage) * (A::kElements + B::kElements)};
  };
  const auto b_of = [=](int stage) { return B{a_of(stage).data + A::kElements}; };
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < steps) {
      loader.fetch(a_of(stage), b_of(stage));
      loader.deposit(a_of(stage), b_of(stage));
    }
    simt::cp_async_commit();
  }
  int current = 0, ahead = kStages - 1;
  for (int64_t step = 0; step < steps; ++step) {
    simt::cp_async_wait<kStages - 2>();
    // The tiles of this step are visible to every thread, and those of the last step are free.
    __syncthreads();
    const bool more = step + kStages - 1 < steps;
    if (more) loader.fetch(a_of(ahead), b_of(ahead));
    product.add(a_of(current), b_of(current));
    if (more) loader.deposit(a_of(ahead), b_of(ahead));
    simt::cp_async_commit();
    current = current + 1 == kStages ? 0 : current + 1;
    ahead = ahead + 1 == kStages ? 0 : ahead + 1;
  }
  // Only empty groups remain.
}

// Writes the product to shared memory, in place of the stages, so that whole rows can be stored.
template <typename Result, typename Product>
__device__ __forceinline__ void stage_result(Result result, const Product& product) {
  __syncthreads();  // the last step's tiles have been read
  product.visit([&](int row, int column, float2 pair) {
    *reinterpret_cast<float2*>(result.at(row, column)) = pair;
  });
  __syncthreads();
}

// Writes the staged rows to offset_of(row); a row with a negative offset is not written.
template <int kThreads, bool kWide, typename Result, typename T, typename Finish, typename Offset>
__device__ __forceinline__ void write_result(Result result, T* to, int64_t first_column,
                                             int64_t columns, const Finish& finish,
                                             Offset offset_of) {
  constexpr int kLanes = Vector<T>::kSize, kChunks = Result::kColumns / kLanes;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < Result::kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, first = i % kChunks * kLanes;
    const int64_t offset = offset_of(row), column = first_column + first;
    if (offset < 0 || column >= columns) continue;
    float values[kLanes];
#pragma unroll
    for (int lane = 0; lane < kLanes; lane += 4) {
      const float4 part = *reinterpret_cast<const float4*>(result.at(row, first + lane));
      values[lane] = part.x;
      values[lane + 1] = part.y;
      values[lane + 2] = part.z;
      values[lane + 3] = part.w;
    }
    finish(values, offset, column, columns);
    Vector<T> stored;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) stored.lane[lane] = narrow<T>(values[lane]);
    if constexpr (Finish::kSums) {
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        *result.at(row, first + lane) = widen(stored.lane[lane]);
      }
    }
    if constexpr (kWide) {
      *reinterpret_cast<Vector<T>*>(to + offset + column) = stored;
    } else {
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        if (column + lane < columns) to[offset + column + lane] = stored.lane[lane];
      }
    }
  }
}

}  // namespace genimg::cuda
