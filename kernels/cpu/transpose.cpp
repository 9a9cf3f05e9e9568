#include "transpose.h"

#include "vector.h"

namespace genimg::cpu::GENIMG_ISA {
namespace {

// Transposes kWidth rows and columns, or those that exist.
template <typename T>
void transpose_tile(const T* from, T* to, int64_t rows, int64_t columns, int64_t used_rows,
                    int64_t used_columns) {
  Vector tile[kWidth];
  const bool whole = used_columns == kWidth;
  for (int64_t i = 0; i < kWidth; ++i) {
    const T* const row = from + smaller(i, used_rows - 1) * columns;
    tile[i] = whole ? load(row) : load_first(row, static_cast<int>(used_columns));
  }
  transpose(tile);
  for (int64_t i = 0; i < used_columns; ++i) {
    if (used_rows == kWidth) {
      store(to + i * rows, tile[i]);
    } else {
      store_first(to + i * rows, tile[i], static_cast<int>(used_rows));
    }
  }
}

// Transposes fewer rows than a vector has elements, one element at a time.
template <typename T>
void transpose_few_rows(const T* from, T* to, int64_t rows, int64_t columns, int64_t used) {
  for (int64_t c = 0; c < used; ++c) {
    for (int64_t r = 0; r < rows; ++r) to[c * rows + r] = from[r * columns + c];
  }
}

template <typename T>
void transpose_few_columns(const T* from, T* to, int64_t rows, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) to[c * rows + r] = from[r * columns + c];
  }
}

template <typename T>
void transpose_pieces(const T* from, T* to, int64_t rows, int64_t columns, int64_t begin,
                      int64_t end) {
  const int64_t pieces = divide_up(columns, kTransposeColumns);
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t first = piece % pieces * kTransposeColumns;
    const int64_t used = smaller(kTransposeColumns, columns - first);
    const int64_t matrix = piece / pieces * rows * columns;
    const T* const source = from + matrix + first;
    T* const target = to + matrix + first * rows;
    if (rows < kWidth) {
      transpose_few_rows(source, target, rows, columns, used);
    } else if (columns < kWidth) {
      transpose_few_columns(source, target, rows, columns);
    } else {
      for (int64_t c = 0; c < used; c += kWidth) {
        for (int64_t r = 0; r < rows; r += kWidth) {
          transpose_tile(source + r * columns + c, target + c * rows + r, rows, columns,
                         smaller(kWidth, rows - r), smaller(kWidth, used - c));
        }
      }
    }
  }
}

}  // namespace

void transpose_f32(const float* from, float* to, int64_t rows, int64_t columns, int64_t begin,
                   int64_t end) {
  transpose_pieces(from, to, rows, columns, begin, end);
}

void transpose_bf16(const uint16_t* from, uint16_t* to, int64_t rows, int64_t columns,
                    int64_t begin, int64_t end) {
  transpose_pieces(from, to, rows, columns, begin, end);
}

}  // namespace genimg::cpu::GENIMG_ISA
