// Shared by the launchers of the convolutions: selection of tile, loads and number of blocks.
#pragma once

#include "mainloop.h"

namespace genimg::cuda {

// Large tiles are selected from this many blocks on, the multiprocessors of a large GPU. It is a
// constant, so that results are the same on every GPU.
constexpr int64_t kManyBlocks = 132;

template <typename T>
ConvTile choose_tile(ConvTile asked, int64_t rows, int64_t columns, int64_t products, bool wide,
                     bool fused) {
  if (sizeof(T) == 4) return ConvTile::k64x64;
  if (asked == ConvTile::kAuto) {
    const auto blocks = [=](int64_t m, int64_t n) {
      return ceil_div(rows, m) * ceil_div(columns, n) * products;
    };
    asked = columns <= 16 ? ConvTile::k64x16 : ConvTile::k64x64;
    if (columns > 16 && blocks(128, 64) >= kManyBlocks) asked = ConvTile::k128x64;
    if (columns > 64 && blocks(128, 128) >= kManyBlocks) asked = ConvTile::k128x128;
  }
  if (fused && asked != ConvTile::k128x128) return ConvTile::k64x64;
  // Narrow loads limit the speed, so that large tiles would gain nothing.
  return wide || asked == ConvTile::k64x16 ? asked : ConvTile::k64x64;
}

// Calls run(config, wide) for the tile and the loads. With kTwoTiles, only the tiles of fused
// kernels and of wgrad are compiled.
template <typename T, bool kTwoTiles, typename Run>
cudaError_t with_tile(ConvTile tile, ConvPrecision precision, bool wide, Run run) {
  if constexpr (sizeof(T) == 4) {
    if (precision == ConvPrecision::kTf32) {
      return wide ? run(Tf32Config{}, std::true_type{}) : run(Tf32Config{}, std::false_type{});
    }
  }
  if constexpr (sizeof(T) == 2) {
    if (tile == ConvTile::k128x128) {
      return run(TileConfig<T, ConvTile::k128x128>{}, std::true_type{});
    }
    if constexpr (!kTwoTiles) {
      if (tile == ConvTile::k128x64) {
        return run(TileConfig<T, ConvTile::k128x64>{}, std::true_type{});
      }
      if (tile == ConvTile::k64x16) {
        using Config = TileConfig<T, ConvTile::k64x16>;
        return wide ? run(Config{}, std::true_type{}) : run(Config{}, std::false_type{});
      }
    }
  }
  using Config = TileConfig<T, ConvTile::k64x64>;
  return wide ? run(Config{}, std::true_type{}) : run(Config{}, std::false_type{});
}

// Bytes of dynamic shared memory: the stages, or the result that replaces them.
template <typename T, typename Config, typename Product>
constexpr size_t shared_bytes() {
  constexpr size_t stage = sizeof(T) * (Product::A::kElements + Product::B::kElements);
  constexpr size_t result = sizeof(float) * Config::kM * Config::kN;
  return Config::kStages * stage > result ? Config::kStages * stage : result;
}

// Sets the grid to `blocks` blocks; returns false if they are too many.
inline bool grid_of(int64_t blocks, dim3* grid) {
  if (blocks > 0x7fffffff) return false;
  *grid = dim3(static_cast<unsigned>(blocks));
  return true;
}

}  // namespace genimg::cuda
