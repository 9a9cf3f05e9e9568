// A block's product of two tiles in shared memory, summed in registers: by mma.sync for half
// precision and TF32, by fused multiply-adds for float.
//
// a is [kM][kK], or [kK][kM] with kAByK; b is [kN][kK], or [kK][kN] with kBByK. visit(f) calls
// f(row, column, pair) for two neighbouring columns at a time.
#pragma once

#include "tile.h"

namespace genimg::cuda {

template <typename T, int kM, int kN, int kK, int kWarpsM, int kWarpsN, bool kAByK, bool kBByK>
class TensorProduct {
 public:
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  using A = Tile<T, kAByK ? kK : kM, kAByK ? kM : kK>;
  using B = Tile<T, kBByK ? kK : kN, kBByK ? kN : kK>;

  __device__ __forceinline__ void add(A a, B b) {
    if constexpr (sizeof(T) == 4) {
      add_tf32(a, b);
    } else {
      add_half(a, b);
    }
  }

  template <typename Visitor>
  __device__ __forceinline__ void visit(Visitor visitor) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          visitor(first_row() + 16 * i + 8 * half + lane / 4, first_column() + 8 * j + lane % 4 * 2,
                  float2{sums_[i][j][2 * half], sums_[i][j][2 * half + 1]});
        }
      }
    }
  }

 private:
  static constexpr int kWarpRows = kM / kWarpsM, kWarpColumns = kN / kWarpsN;
  static constexpr int kRowTiles = kWarpRows / 16, kColumnTiles = kWarpColumns / 8;
  static_assert(kWarpRows % 16 == 0 && kWarpColumns % 16 == 0 && kK % 16 == 0);

  __device__ __forceinline__ void add_half(A a, B b) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    // Rows of the four 8x8 matrices that an ldmatrix takes: the pairs (0, 1) and (2, 3) follow each
    // other along the rows of memory, or the pairs (0, 2) and (1, 3).
    const int near_row = lane % 16, near_column = lane / 16 * 8;
    const int far_row = lane % 8 + lane / 16 * 8, far_column = lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < kK; k += 16) {
      uint32_t a_part[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        const int m = first_row() + 16 * i;
        if constexpr (kAByK) {
          simt::ldmatrix_x4_trans(a_part[i], a.at(k + far_row, m + far_column));
        } else {
          simt::ldmatrix_x4(a_part[i], a.at(m + near_row, k + near_column));
        }
      }
#pragma unroll
      for (int j = 0; j < kColumnTiles; j += 2) {
        const int n = first_column() + 8 * j;
        uint32_t b_part[4];
        if constexpr (kBByK) {
          simt::ldmatrix_x4_trans(b_part, b.at(k + near_row, n + near_column));
        } else {
          simt::ldmatrix_x4(b_part, b.at(n + far_row, k + far_column));
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t b_half[2] = {b_part[2 * half], b_part[2 * half + 1]};
#pragma unroll
          for (int i = 0; i < kRowTiles; ++i) {
            simt::mma_m16n8k16(sums_[i][j + half], a_part[i], b_half, T{});
          }
        }
      }
    }
  }

  // ldmatrix moves 16 bytes of a row: four floats, of which each lane gets one. It cannot exchange
  // rows and columns of floats: what lies by k is read float by float.
  __device__ __forceinline__ void add_tf32(A a, B b) {
    const int lane = static_cast<int>(threadIdx.x) % 32, group = lane / 4, own = lane % 4;
    const int near_row = lane % 16, near_column = lane / 16 * 4;
    const int far_row = lane % 8 + lane / 16 * 8, far_column = lane / 8 % 2 * 4;
#pragma unroll
    for (int k = 0; k < kK; k += 8) {
      uint32_t a_part[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        const int m = first_row() + 16 * i;
        if constexpr (kAByK) {
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            a_part[i][r] = __float_as_uint(*a.at(k + own + r / 2 * 4, m + group + r % 2 * 8));
          }
        } else {
          simt::ldmatrix_x4(a_part[i], a.at(m + near_row, k + near_column));
        }
        round_all(a_part[i]);
      }
#pragma unroll
      for (int j = 0; j < kColumnTiles; j += 2) {
        const int n = first_column() + 8 * j;
        uint32_t b_part[4];
        if constexpr (kBByK) {
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            b_part[r] = __float_as_uint(*b.at(k + own + r % 2 * 4, n + group + r / 2 * 8));
          }
        } else {
          simt::ldmatrix_x4(b_part, b.at(n + far_row, k + far_column));
        }
        round_all(b_part);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t b_half[2] = {b_part[2 * half], b_part[2 * half + 1]};
#pragma unroll
          for (int i = 0; i < kRowTiles; ++i) {
            simt::mma_m16n8k8(sums_[i][j + half], a_part[i], b_half);
          }
        }
      }
    }
  }

  static __device__ __forceinline__ void round_all(uint32_t (&part)[4]) {
#pragma unroll
    for (int r = 0; r < 4; ++r) part[r] = simt::round_to_tf32(part[r]);
  }

  static __device__ __forceinline__ int first_row() {
    return static_cast<int>(threadIdx.x) / 32 / kWarpsN * kWarpRows;
  }
  static __device__ __forceinline__ int first_column() {
    return static_cast<int>(threadIdx.x) / 32 % kWarpsN * kWarpColumns;
  }

  float sums_[kRowTiles][kColumnTiles][4] = {};
};

// 64x64 by 128 threads, each 8 rows of 4 columns.
template <int kK, bool kAByK, bool kBByK>
class FloatProduct {
 public:
  static constexpr int kThreads = 128, kM = 64, kN = 64;
  using A = Tile<float, kAByK ? kK : kM, kAByK ? kM : kK>;
  using B = Tile<float, kBByK ? kK : kN, kBByK ? kN : kK>;

  __device__ __forceinline__ void add(A a, B b) {
#pragma unroll
    for (int k = 0; k < kK; k += 4) {
      Vector<float> a_part[kRows], b_part[kColumns];
      // Vectors lie along the rows of memory: along k, or four neighbours of one k.
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float* from = kAByK ? a.at(k + i % 4, row(i / 4 * 4)) : a.at(row(i), k);
        a_part[i] = *reinterpret_cast<const Vector<float>*>(from);
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const float* from = kBByK ? b.at(k + j, column(0)) : b.at(column(j), k);
        b_part[j] = *reinterpret_cast<const Vector<float>*>(from);
      }
#pragma unroll
      for (int kk = 0; kk < 4; ++kk) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const float a_value = kAByK ? a_part[i / 4 * 4 + kk].lane[i % 4] : a_part[i].lane[kk];
#pragma unroll
          for (int j = 0; j < kColumns; ++j) {
            sums_[i][j] += a_value * (kBByK ? b_part[kk].lane[j] : b_part[j].lane[kk]);
          }
        }
      }
    }
  }

  template <typename Visitor>
  __device__ __forceinline__ void visit(Visitor visitor) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; j += 2) {
        visitor(row(i), column(j), float2{sums_[i][j], sums_[i][j + 1]});
      }
    }
  }

 private:
  static constexpr int kRows = 8, kColumns = 4;

  static __device__ __forceinline__ int row(int i) {
    const int ty = static_cast<int>(threadIdx.x) / 16;
    return kAByK ? ty * kRows + i : ty + 8 * i;
  }
  static __device__ __forceinline__ int column(int j) {
    const int tx = static_cast<int>(threadIdx.x) % 16;
    return kBByK ? tx * kColumns + j : tx * 2 + j % 2 + j / 2 * 32;
  }

  float sums_[kRows][kColumns] = {};
};

// The product of a tile by its name: TileConfig<T, ConvTile::k64x64>::Product<a by k, b by k>.
template <typename T, ConvTile kTile>
struct TileConfig;

#define GENIMG_TILE(name, m, n, warps_m, warps_n, stages)                       \
  template <typename T>                                                         \
  struct TileConfig<T, ConvTile::name> {                                        \
    static constexpr int kM = m, kN = n, kK = 32, kStages = stages;             \
    template <bool kAByK, bool kBByK>                                           \
    using Product = TensorProduct<T, m, n, kK, warps_m, warps_n, kAByK, kBByK>; \
  };
GENIMG_TILE(k64x16, 64, 16, 4, 1, 4)
GENIMG_TILE(k64x64, 64, 64, 2, 2, 4)
GENIMG_TILE(k128x64, 128, 64, 2, 2, 4)
GENIMG_TILE(k128x128, 128, 128, 2, 4, 4)
#undef GENIMG_TILE

template <>
struct TileConfig<float, ConvTile::k64x64> {
  static constexpr int kM = 64, kN = 64, kK = 16, kStages = 3;
  template <bool kAByK, bool kBByK>
  using Product = FloatProduct<kK, kAByK, kBByK>;
};

// float by tensor cores.
struct Tf32Config {
  static constexpr int kM = 64, kN = 64, kK = 16, kStages = 4;
  template <bool kAByK, bool kBByK>
  using Product = TensorProduct<float, kM, kN, kK, 2, 2, kAByK, kBByK>;
};

}  // namespace genimg::cuda
