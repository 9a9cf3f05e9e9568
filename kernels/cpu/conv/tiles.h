// Splits an axis of a convolution into tiles, and a convolution into passes over them.
//
// A tile reads `patch` positions of the input's axis and transforms them to `values` values; an
// output phase is a set of products of these whose inverse transform (finish_axis) gives outputs.
// Two dimensions are an outer product of two axes.
#pragma once

#include "geometry.h"
#include "matmul.h"

namespace genimg::cpu::GENIMG_ISA {

constexpr int kTileCount = 24;  // tiles of a block: their transformed input stays in L2

enum class Transform {
  copy,      // value = position
  up2,       // F(2,2) of dgrad: 4 positions, 5 values
  up3,       // F(3,2) of dgrad: 5 positions, 7 values
  down2,     // F(2,2) of fprop: 6 positions, 6 values
  down3,     // F(3,2) of fprop: 8 positions, 8 values
  gathered,  // the taps of few channels, side by side, are the one value
};

// The largest numbers of products and outputs of an output phase.
constexpr int kMostProducts = 4, kMostOutputs = 3;

// A sum of transformed values times rows of the packed weight.
struct Product {
  int terms;
  int value[kMaxKernel], packed[kMaxKernel];

  void add(int v, int row) {
    value[terms] = v;
    packed[terms++] = row;
  }
};

// Products whose inverse transform gives outputs j: tile * out_step + out_at + j * out_stride.
struct OutputPhase {
  int products, outputs;
  Product product[kMostProducts];
  int64_t out_at;
};

struct Axis {
  int64_t first, count;  // tiles
  int64_t in_step;       // from one tile's positions to the next one's
  int patch;
  int64_t in_at[kMaxKernel];  // positions of tile 0
  int values;
  int output_phases;
  OutputPhase output_phase[2];
  int64_t out_step, out_stride;

  int64_t all_outputs() const {
    return output_phase[0].outputs + (output_phases == 2 ? output_phase[1].outputs : 0);
  }
};

struct Variants {
  int count;
  Axis axes[kMaxKernel];
};

// F(size,2) of dgrad. A tile has the inputs x0 to x(size-1) and computes 2 size outputs from them
// and their neighbours; one output phase has the even outputs, another the odd ones.
//
// size 2: a = (x-1 - x0, x0, x0 - x1, x1, x1 - x2)
//   even m = (a0 w3, a1 (w1 + w3), a2 w1), odd m = (a2 w2, a3 (w2 + w0), a4 w0)
//   y = (m0 + m1, m1 - m2)
// size 3: a = (x-1 - x1, x0 + x1, x1 - x0, x2 - x0, x1 + x2, x2 - x1, x3 - x1)
//   even m = (a0 w3, a1 (w3 + w1)/2, a2 (w3 - w1)/2, a3 w1),
//   odd m = (-a3 w2, a4 (w2 + w0)/2, a5 (w2 - w0)/2, a6 w0)
//   y = (m0 + m1 + m2, m1 - m2, m1 + m2 + m3)
//
// If size does not divide the axis, the last tile has fewer outputs, and inputs beyond the axis are
// 0: products that are unused or 0 are omitted. Where F(3,2) has one output, a0 = x-1 and a1 = x0,
// so that y0 = a0 w3 + a1 w1 is computed directly.
inline Variants winograd_up(int64_t small, int size) {
  Variants variants = {};
  const int rest = static_cast<int>(small % size);
  const int counts[] = {size, rest};
  for (const int wanted : counts) {
    Axis axis = {};
    axis.first = wanted == size ? 0 : small / size;
    axis.count = wanted == size ? small / size : 1;
    if (axis.count == 0 || wanted == 0) continue;
    axis.in_step = size;
    axis.patch = size + 2;
    for (int i = 0; i < axis.patch; ++i) axis.in_at[i] = i - 1;
    axis.values = size == 2 ? 5 : 7;
    axis.output_phases = 2;
    for (int odd = 0; odd < 2; ++odd) {
      OutputPhase& output_phase = axis.output_phase[odd];
      output_phase.outputs = wanted;
      output_phase.out_at = odd;
      output_phase.products = wanted == size ? size + 1 : size;
      if (wanted == 1 && (odd || size == 3)) output_phase.products = 1;
      for (int m = 0; m < output_phase.products; ++m) {
        output_phase.product[m].add(odd * size + m, odd * (size + 1) + m);
      }
      if (wanted == 1 && size == 3 && !odd) output_phase.product[0].add(1, 3);
    }
    axis.out_step = 2 * size;
    axis.out_stride = 2;
    variants.axes[variants.count++] = axis;
  }
  return variants;
}

// F(size,2) of fprop, with e[j] = x[2j] and o[j] = x[2j + 1]; a product has a term of each.
//
// size 2: e: ((e0 - e1) w1, e1 (w1 + w3), (e1 - e2) w3), o: ((o-1 - o0) w0, o0 (w0 + w2),
//   (o0 - o1) w2)
// size 3: e: ((e0 - e2) w1, (e1 + e2) (w1 + w3)/2, (e2 - e1) (w1 - w3)/2, (e3 - e1) w3),
//   o: the same of o-1 to o2, w0 and w2
// y as for dgrad, and so are the last tile's omissions: where it has one output, its e1 is 0, and
// that of F(3,2) is y0 = e0 w1 + o-1 w0 + o0 w2.
inline Variants winograd_down(int64_t small, int size) {
  Variants variants = {};
  const int rest = static_cast<int>(small % size);
  const int counts[] = {size, rest};
  for (const int wanted : counts) {
    Axis axis = {};
    axis.first = wanted == size ? 0 : small / size;
    axis.count = wanted == size ? small / size : 1;
    if (axis.count == 0 || wanted == 0) continue;
    axis.in_step = 2 * size;
    axis.patch = 2 * size + 2;
    for (int i = 0; i < axis.patch; ++i) axis.in_at[i] = i - 1;
    axis.values = axis.patch;
    axis.output_phases = 1;
    OutputPhase& output_phase = axis.output_phase[0];
    output_phase.outputs = wanted;
    if (wanted == 1 && size == 3) {
      output_phase.products = 1;
      output_phase.product[0].add(0, 0);
      output_phase.product[0].add(1, 1);
      output_phase.product[0].add(3, 7);
    } else {
      output_phase.products = wanted == size ? size + 1 : size;
      for (int m = 0; m < output_phase.products; ++m) {
        const bool even_is_zero = wanted == 1 && m == 1;
        if (!even_is_zero) output_phase.product[m].add(2 * m, 2 * m);
        output_phase.product[m].add(2 * m + 1, 2 * m + 1);
      }
    }
    axis.out_step = size;
    axis.out_stride = 1;
    variants.axes[variants.count++] = axis;
  }
  return variants;
}

inline int64_t floor_mod(int64_t a, int64_t b) { return ((a % b) + b) % b; }

// A tile is one output of a phase; a phase is the set of outputs that have the same taps.
inline Variants direct_up(int64_t large, int64_t kernel, int64_t stride, int64_t pad) {
  Variants variants = {};
  for (int64_t phase = 0; phase < stride && phase < large; ++phase) {
    Axis axis = {};
    axis.count = divide_up(large - phase, stride);
    axis.in_step = 1;
    for (int64_t k = 0; k < kernel; ++k) {
      if (floor_mod(phase + pad - k, stride) != 0) continue;
      axis.in_at[axis.patch] = (phase + pad - k) / stride;  // exact
      axis.output_phase[0].product[0].add(axis.patch++, static_cast<int>(k));
    }
    axis.values = axis.patch;
    axis.output_phases = axis.output_phase[0].products = axis.output_phase[0].outputs = 1;
    axis.out_step = stride;
    axis.output_phase[0].out_at = phase;
    variants.axes[variants.count++] = axis;
  }
  return variants;
}

inline Variants direct_down(int64_t small, int64_t kernel, int64_t stride, int64_t pad) {
  Variants variants = {};
  Axis axis = {};
  axis.count = small;
  axis.in_step = stride;
  for (int64_t k = 0; k < kernel; ++k) {
    axis.in_at[k] = k - pad;
    axis.output_phase[0].product[0].add(static_cast<int>(k), static_cast<int>(k));
  }
  axis.patch = axis.values = static_cast<int>(kernel);
  axis.output_phases = axis.output_phase[0].products = axis.output_phase[0].outputs = 1;
  axis.out_step = 1;
  variants.axes[variants.count++] = axis;
  return variants;
}

// All taps together are one value.
inline Variants im2col_down(int64_t small, int64_t kernel, int64_t stride, int64_t pad) {
  Variants variants = direct_down(small, kernel, stride, pad);
  variants.axes[0].values = variants.axes[0].output_phase[0].product[0].terms = 1;
  return variants;
}

// A convolution as passes over its tiles, one pass for each pair of axis variants.
struct Tiling {
  Transform transform;
  int size;  // of F(size,2); 1: no transform
  Variants h, w;
  int64_t batch;
  int64_t in_h, in_w, in_c, out_h, out_w, out_c;
  int64_t depth;        // of a product
  int64_t rows;         // tiles of a block
  int64_t packed_rows;  // matrices of the packed weight
  int64_t packed_w;     // of them, to the next along h

  int64_t passes() const { return static_cast<int64_t>(h.count) * w.count; }
  int64_t tiles(int64_t pass) const { return batch * axis_h(pass).count * axis_w(pass).count; }
  int64_t blocks(int64_t pass) const { return divide_up(tiles(pass), rows); }
  const Axis& axis_h(int64_t pass) const { return h.axes[pass / w.count]; }
  const Axis& axis_w(int64_t pass) const { return w.axes[pass % w.count]; }
  int64_t all_blocks() const {
    int64_t sum = 0;
    for (int64_t pass = 0; pass < passes(); ++pass) sum += blocks(pass);
    return sum;
  }
  int64_t panels() const { return divide_up(out_c, kPanel); }
  // If there are few blocks, the output's channels are split too.
  int64_t splits() const {
    const int64_t wanted = divide_up(32, larger(1, all_blocks()));
    return smaller(wanted, panels());
  }
  int64_t value_size() const { return divide_up(depth, kBlock) * kBlock * rows; }
  int64_t max_values() const {
    int64_t most = 1;
    for (int64_t pass = 0; pass < passes(); ++pass) {
      most = larger(most, static_cast<int64_t>(axis_h(pass).values) * axis_w(pass).values);
    }
    return most;
  }
};

inline Tiling tiling_of(const ConvGeometry& g, ConvDirection direction, ConvAlgorithm form) {
  const bool up = direction == ConvDirection::dgrad;
  Tiling t = {};
  t.batch = g.batch;
  t.in_h = up ? g.small_h : g.large_h;
  t.in_w = up ? g.small_w : g.large_w;
  t.in_c = up ? g.small_c : g.large_c;
  t.out_h = up ? g.large_h : g.small_h;
  t.out_w = up ? g.large_w : g.small_w;
  t.out_c = up ? g.large_c : g.small_c;
  t.depth = t.in_c;
  t.rows = kTileCount;
  t.size = form == ConvAlgorithm::winograd_f2x2 ? 2 : form == ConvAlgorithm::winograd_f3x2 ? 3 : 1;
  if (is_winograd(form)) {
    t.transform = t.size == 2 ? (up ? Transform::up2 : Transform::down2)
                              : (up ? Transform::up3 : Transform::down3);
    t.h = up ? winograd_up(g.small_h, t.size) : winograd_down(g.small_h, t.size);
    t.w = up ? winograd_up(g.small_w, t.size) : winograd_down(g.small_w, t.size);
    t.packed_w = 2 * (t.size + 1);
    t.packed_rows = t.packed_w * t.packed_w;
  } else if (form == ConvAlgorithm::direct) {
    t.transform = Transform::copy;
    t.h = up ? direct_up(g.large_h, g.kernel_h, g.stride_h, g.pad_h)
             : direct_down(g.small_h, g.kernel_h, g.stride_h, g.pad_h);
    t.w = up ? direct_up(g.large_w, g.kernel_w, g.stride_w, g.pad_w)
             : direct_down(g.small_w, g.kernel_w, g.stride_w, g.pad_w);
    t.packed_rows = g.kernel_h * g.kernel_w;
    t.packed_w = g.kernel_w;
  } else {
    t.transform = Transform::gathered;
    t.h = im2col_down(g.small_h, g.kernel_h, g.stride_h, g.pad_h);
    t.w = im2col_down(g.small_w, g.kernel_w, g.stride_w, g.pad_w);
    t.depth = g.large_c * g.kernel_h * g.kernel_w;
    t.packed_rows = t.packed_w = 1;
  }
  return t;
}

}  // namespace genimg::cpu::GENIMG_ISA
