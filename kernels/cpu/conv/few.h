// dgrad to few channels, as in the last layer of a generator: multiplies the pixels by the channels
// of all taps side by side, and adds the columns of the product to their output pixels.
#pragma once

#include "store.h"

namespace genimg::cpu::GENIMG_ISA {

constexpr int64_t kStripFloats = 1 << 16;  // of products, which stay in L2

// An image is split into strips of output rows; rows of the small image that two strips need are
// multiplied in both.
struct FewUp {
  explicit FewUp(const ConvGeometry& geometry) : g(geometry) {
    columns = g.kernel_h * g.kernel_w * g.large_c;
    const int64_t row = g.small_w * divide_up(columns, kPanel) * kPanel;
    const int64_t small_rows = larger(2, kStripFloats / row);
    // Enough strips for many threads, even for one image.
    const int64_t wanted = divide_up(16, larger(1, g.batch));
    rows = larger(1, smaller(small_rows * g.stride_h, divide_up(g.large_h, wanted)));
    strips = divide_up(g.large_h, rows);
  }

  int64_t units() const { return g.batch * strips; }

  // Rows of the small image that output rows [begin, end) depend on.
  int64_t first_small(int64_t begin) const {
    const int64_t lowest = begin + g.pad_h - (g.kernel_h - 1);
    return lowest <= 0 ? 0 : divide_up(lowest, g.stride_h);
  }
  int64_t last_small(int64_t end) const {
    return smaller(g.small_h - 1, (end - 1 + g.pad_h) / g.stride_h);
  }
  int64_t most_small_rows() const { return (rows - 1 + g.kernel_h - 1) / g.stride_h + 2; }

  int64_t pixels() const { return most_small_rows() * g.small_w; }
  int64_t product_size() const { return pixels() * divide_up(columns, kPanel) * kPanel; }
  int64_t value_size() const { return divide_up(g.small_c, kBlock) * kBlock * kTileCount; }
  // Room for the block that is multiplied, for the products and a block's overhang, and for an
  // output row.
  int64_t scratch_size() const {
    return value_size() + product_size() + kTileCount * kPanel + g.large_w * g.large_c + kWidth;
  }

  const ConvGeometry& g;
  int64_t columns, rows, strips;
};

}  // namespace genimg::cpu::GENIMG_ISA
