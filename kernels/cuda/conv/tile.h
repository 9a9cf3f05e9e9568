// A tile of an operand in shared memory, and the copy that fills it.
#pragma once

#include "prologue.h"

namespace genimg::cuda {

// Rows of 16-byte chunks, permuted within a row so that the same column of eight rows is in
// different banks: ldmatrix and 16-byte accesses have no bank conflicts, without padding.
template <typename T, int kTileRows, int kTileColumns>
struct Tile {
  static constexpr int kRows = kTileRows, kColumns = kTileColumns;
  static constexpr int kLanes = Vector<T>::kSize, kChunks = kColumns / kLanes;
  static constexpr int kElements = kRows * kColumns;
  static constexpr int kSpan = kChunks < 8 ? kChunks : 8;
  static_assert(kColumns % kLanes == 0 && (kChunks & (kChunks - 1)) == 0);

  T* data;

  __device__ __forceinline__ T* chunk(int row, int index) const {
    return data + (row * kChunks + (index ^ (row / (8 / kSpan) % kSpan))) * kLanes;
  }
  __device__ __forceinline__ T* at(int row, int column) const {
    return chunk(row, column / kLanes) + column % kLanes;
  }
};

// Fills a tile from a source, which locates this thread's elements:
//   Cursor first() const                       the thread's first column of the tile
//   void next(Cursor&) const                   the column after it
//   int channel(Cursor) const
//   const T* locate(int pass, Cursor) const    null for a zero
//   const T* base
// The thread has one chunk in every row `first_row + pass * kStep`. With kWide, chunks are aligned
// and either wholly inside or wholly outside, and are copied by cp.async if there is no prologue;
// else fetch() reads into registers and deposit() writes them, with the products in between.
template <typename TileType, int kThreads, bool kWide, typename T, typename Prologue>
class Filler {
 public:
  static constexpr int kStep = kThreads / TileType::kChunks;
  static constexpr int kPasses = (TileType::kRows + kStep - 1) / kStep;
  static constexpr int kLanes = TileType::kLanes;
  static constexpr bool kAsync = kWide && Prologue::kCopies;
  static_assert(kThreads % TileType::kChunks == 0);

  __device__ explicit Filler(const ConvPrologue& prologue) : prologue_(prologue) {}

  static __device__ __forceinline__ int first_row() {
    return static_cast<int>(threadIdx.x) / TileType::kChunks;
  }
  static __device__ __forceinline__ int first_column() {
    return static_cast<int>(threadIdx.x) % TileType::kChunks * kLanes;
  }

  template <typename Source>
  __device__ __forceinline__ void fetch(TileType tile, const Source& source) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      if (!has(pass)) break;
      if constexpr (kAsync) {
        const T* const from = source.locate(pass, source.first());
        simt::cp_async_16(chunk(tile, pass), from, from != nullptr);
      } else {
        read(held_[pass], pass, source);
      }
    }
  }

  __device__ __forceinline__ void deposit(TileType tile) const {
    if constexpr (!kAsync) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        if (!has(pass)) break;
        *reinterpret_cast<Vector<T>*>(chunk(tile, pass)) = held_[pass];
      }
    }
  }

 private:
  static __device__ __forceinline__ bool has(int pass) {
    return TileType::kRows % kStep == 0 || first_row() + pass * kStep < TileType::kRows;
  }
  static __device__ __forceinline__ T* chunk(TileType tile, int pass) {
    return tile.chunk(first_row() + pass * kStep,
                      static_cast<int>(threadIdx.x) % TileType::kChunks);
  }

  template <typename Source>
  __device__ __forceinline__ void read(Vector<T>& to, int pass, const Source& source) const {
    auto cursor = source.first();
    if constexpr (kWide) {
      const T* const from = source.locate(pass, cursor);
      if (from == nullptr) {
        to = {};
        return;
      }
      to = *reinterpret_cast<const Vector<T>*>(from);
      prologue_(to.lane, from - source.base, source.channel(cursor));
    } else {
#pragma unroll
      for (int i = 0; i < kLanes; ++i, source.next(cursor)) {
        const T* const from = source.locate(pass, cursor);
        T value[1] = {};
        if (from != nullptr) {
          value[0] = *from;
          prologue_(value, from - source.base, source.channel(cursor));
        }
        to.lane[i] = value[0];
      }
    }
  }

  Prologue prologue_;
  Vector<T> held_[kAsync ? 1 : kPasses];
};

}  // namespace genimg::cuda
