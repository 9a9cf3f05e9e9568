// Matrix products of operands that are stored in blocks of kBlock columns.
//
// A blocked operand of `rows` rows is [columns / kBlock][rows][kBlock], so that a tile of rows is
// contiguous in memory, at offsets that the compiler knows.
#pragma once

#include "../vector.h"

namespace genimg::cpu::GENIMG_ISA {

// A tile of the result stays in registers: kTileRows rows of one or two vectors.
constexpr int kTileRows = kWidth == 16 ? 12 : 6;
constexpr int kPanel = 2 * kWidth;  // columns of a packed panel

// One term of a sum of products: a blocked operand, and the packed rows [K][columns] it meets.
struct Term {
  const float* a;
  const float* b;
};

template <int kRows, int kVectors>
[[gnu::always_inline]] inline void step(const float* a, const float* b,
                                        Vector (&sums)[kRows][kVectors]) {
  Vector columns[kVectors];
  for (int v = 0; v < kVectors; ++v) columns[v] = load(b + v * kWidth);
  for (int row = 0; row < kRows; ++row) {
    const Vector value = broadcast(a[row * kBlock]);
    for (int v = 0; v < kVectors; ++v) sums[row][v] += value * columns[v];
  }
}

// Products that are summed in one chain; the sums of the chains are then added. The error of a
// single chain would grow with the depth of the product.
constexpr int kChain = 64;

// Computes out[row][column] = the terms' sum of a[row][k] b[k][column], for kRows rows from `row`
// on.
template <int kRows, int kVectors>
void multiply_tile(const Term* terms, int count, int64_t depth, int64_t rows, int64_t row,
                   float* out) {
  Vector sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Vector{};
  }
  out += row * kPanel;
  bool first = true;
  int chain = 0;
  const auto flush = [&]() __attribute__((always_inline)) {
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        float* const to = out + r * kPanel + v * kWidth;
        store(to, first ? sums[r][v] : load(to) + sums[r][v]);
        sums[r][v] = Vector{};
      }
    }
    first = false;
    chain = 0;
  };
  for (int term = 0; term < count; ++term) {
    const float* a = terms[term].a + row * kBlock;
    const float* b = terms[term].b;
    int64_t k = 0;
    for (; k + kBlock <= depth; k += kBlock, a += rows * kBlock) {
      if (chain >= kChain) flush();
#pragma GCC unroll 4
      for (int i = 0; i < kBlock; ++i, b += kVectors * kWidth) {
        step<kRows, kVectors>(a + i, b, sums);
      }
      chain += kBlock;
    }
    if (k == depth) continue;
    if (chain >= kChain) flush();
    for (int i = 0; k + i < depth; ++i, b += kVectors * kWidth) {
      step<kRows, kVectors>(a + i, b, sums);
    }
    chain += static_cast<int>(depth - k);
  }
  flush();
}

// The same for all rows: out is [rows][kPanel], of which kVectors vectors are written.
template <int kVectors>
void multiply_rows(const Term* terms, int count, int64_t depth, int64_t rows, int64_t used,
                   float* out) {
  int64_t row = 0;
  for (; row + kTileRows <= used; row += kTileRows) {
    multiply_tile<kTileRows, kVectors>(terms, count, depth, rows, row, out);
  }
  for (; row + 4 <= used; row += 4) {
    multiply_tile<4, kVectors>(terms, count, depth, rows, row, out);
  }
  for (; row < used; ++row) multiply_tile<1, kVectors>(terms, count, depth, rows, row, out);
}

// Computes out = the terms' sum of products. `rows` is the height of the blocked operands; `used`
// of them are computed; b has `columns` columns, padded to one vector or to a panel.
inline void multiply(const Term* terms, int count, int64_t depth, int64_t rows, int64_t used,
                     int64_t columns, float* out) {
  if (columns <= kWidth) {
    multiply_rows<1>(terms, count, depth, rows, used, out);
  } else {
    multiply_rows<2>(terms, count, depth, rows, used, out);
  }
}

// Adds to sums[row][column] the products of two blocked operands over their rows: a's columns are
// the rows of the result and b's its columns, a block of each.
constexpr int kOuterRows = kWidth == 16 ? 8 : kWidth == 8 ? 4 : 2;

template <int kBlocks>
inline void add_outer_tile(const float* a, const float* b, int64_t b_block, int64_t used, float* to,
                           int64_t stride) {
  constexpr int kVectors = kBlocks * kBlock / kWidth;
  for (int64_t k = 0; k < used;) {
    const int64_t end = smaller(used, k + kChain);
    Vector sums[kOuterRows][kVectors];
    for (int r = 0; r < kOuterRows; ++r) {
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Vector{};
    }
    for (; k < end; ++k) {
      Vector columns[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        columns[v] = load(b + v * kWidth / kBlock * b_block + k * kBlock + v * kWidth % kBlock);
      }
      for (int r = 0; r < kOuterRows; ++r) {
        const Vector value = broadcast(a[k * kBlock + r]);
        for (int v = 0; v < kVectors; ++v) sums[r][v] += value * columns[v];
      }
    }
    for (int r = 0; r < kOuterRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        float* const at = to + r * stride + v * kWidth;
        store(at, load(at) + sums[r][v]);
      }
    }
  }
}

// The same for a block of a's columns and all of b's, `columns` of them: `to` is [kBlock][stride].
inline void add_outer(const float* a, const float* b, int64_t columns, int64_t rows, int64_t used,
                      float* to, int64_t stride) {
  constexpr int kBlocks = kWidth == 16 ? 2 : 1;
  const int64_t block = rows * kBlock;
  for (int r = 0; r < kBlock; r += kOuterRows) {
    int64_t c = 0;
    for (; c + (kBlocks - 1) * kBlock < columns; c += kBlocks * kBlock) {
      add_outer_tile<kBlocks>(a + r, b + c * rows, block, used, to + r * stride + c, stride);
    }
    if (c < columns) {
      add_outer_tile<1>(a + r, b + c * rows, block, used, to + r * stride + c, stride);
    }
  }
}

}  // namespace genimg::cpu::GENIMG_ISA
