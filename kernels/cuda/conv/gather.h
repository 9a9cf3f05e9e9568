// Sources: where the elements of the operands are in memory. Filler in tile.h defines a source.
#pragma once

#include "mixed_radix.h"

namespace genimg::cuda {

// A matrix in memory.
template <typename T>
struct MatrixSource {
  using Cursor = int64_t;
  const T* base;
  int64_t rows, columns;
  int64_t row, column;  // this thread's first
  int step;             // rows from one pass to the next

  __device__ __forceinline__ Cursor first() const { return column; }
  __device__ __forceinline__ void next(Cursor& at) const { ++at; }
  __device__ __forceinline__ int channel(Cursor at) const { return static_cast<int>(at); }
  __device__ __forceinline__ const T* locate(int pass, Cursor at) const {
    const int64_t r = row + pass * step;
    return r < rows && at < columns ? base + r * columns + at : nullptr;
  }
};

// An image as the pixels of the other image read it: a row is a pixel, a column is a channel of one
// of its taps. Successive taps go forward in the image (fprop) or backward (dgrad).
template <typename T, int kPasses, bool kForth>
struct TapSource {
  using Cursor = Digits;
  const T* base;
  int height, width, taps_h;
  Radix taps;  // channels, taps_w
  const T* image[kPasses];
  int y[kPasses], x[kPasses];  // of the first tap
  Digits tap;                  // of this thread's first column

  __device__ __forceinline__ void set_row(int pass, int64_t batch, const Digits& pixel, int top,
                                          int left) {
    const bool inside = pixel.high < batch;
    image[pass] =
        base + (inside ? static_cast<int64_t>(pixel.high) * height * width * taps.low : 0);
    y[pass] = inside ? top : kForth ? height : -1;  // no tap of such a row is inside
    x[pass] = left;
  }

  __device__ __forceinline__ Cursor first() const { return tap; }
  __device__ __forceinline__ void next(Cursor& at) const { at.increment(taps); }
  __device__ __forceinline__ int channel(const Cursor& at) const { return at.low; }
  __device__ __forceinline__ const T* locate(int pass, const Cursor& at) const {
    const int row = kForth ? y[pass] + at.high : y[pass] - at.high;
    const int column = kForth ? x[pass] + at.middle : x[pass] - at.middle;
    const bool inside = at.high < taps_h && static_cast<unsigned>(row) < unsigned(height) &&
                        static_cast<unsigned>(column) < unsigned(width);
    if (!inside) return nullptr;
    return image[pass] + (static_cast<int64_t>(row) * width + column) * taps.low + at.low;
  }
};

// dgrad's weight: a row is a tap and a channel of the small image, a column is a channel of the
// large image.
template <typename T, int kPasses>
struct PhaseWeightSource {
  using Cursor = int;
  const T* base;
  int kernel_h, kernel_w, large_c, column;
  int first_h, first_w, stride_h, stride_w;  // the phase's taps
  int taps_h;
  Radix taps;           // small_c, taps_w
  Digits tap[kPasses];  // of this thread's rows

  __device__ __forceinline__ Cursor first() const { return column; }
  __device__ __forceinline__ void next(Cursor& at) const { ++at; }
  __device__ __forceinline__ int channel(Cursor at) const { return at; }
  __device__ __forceinline__ const T* locate(int pass, Cursor at) const {
    const Digits& row = tap[pass];
    if (row.high >= taps_h || at >= large_c) return nullptr;
    const int h = first_h + stride_h * row.high, w = first_w + stride_w * row.middle;
    const int64_t pixel = (static_cast<int64_t>(row.low) * kernel_h + h) * kernel_w + w;
    return base + pixel * large_c + at;
  }
};

// wgrad's large image: a row is a pixel of the small image, a column is a channel of a tap.
template <typename T, int kPasses>
struct PatchSource {
  using Cursor = Digits;
  const T* base;
  int64_t batch;
  int height, width, stride_h, stride_w, pad_h, pad_w, kernel_h;
  Radix taps;             // large_c, kernel_w
  Digits tap;             // of this thread's first column
  Digits pixel[kPasses];  // small image: column, row, image
  int64_t row, end;       // the thread's first pixel, and the end of the block's
  int step;

  __device__ __forceinline__ Cursor first() const { return tap; }
  __device__ __forceinline__ void next(Cursor& at) const { at.increment(taps); }
  __device__ __forceinline__ int channel(const Cursor& at) const { return at.low; }
  __device__ __forceinline__ const T* locate(int pass, const Cursor& at) const {
    const Digits& p = pixel[pass];
    const int y = p.middle * stride_h - pad_h + at.high;
    const int x = p.low * stride_w - pad_w + at.middle;
    const bool inside = row + pass * step < end && at.high < kernel_h &&
                        static_cast<unsigned>(y) < unsigned(height) &&
                        static_cast<unsigned>(x) < unsigned(width);
    if (!inside) return nullptr;
    return base + ((static_cast<int64_t>(p.high) * height + y) * width + x) * taps.low + at.low;
  }
};

}  // namespace genimg::cuda
