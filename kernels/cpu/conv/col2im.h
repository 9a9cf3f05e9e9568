// dgrad of few pixels: multiplies the pixels by the unpacked weight, [small_c][large_c * 16] or
// [small_c][16 * large_c], and adds the columns of the product to their output pixels. With few
// pixels, reading the weight dominates, so that packing it does not pay.
#pragma once

#include "store.h"

namespace genimg::cpu::GENIMG_ISA {

constexpr int64_t kFewPixels = 256;
constexpr int64_t kColumnTaps = 16;  // of a 4x4 kernel
constexpr int64_t kColumns = kBlock * kColumnTaps;

// A unit of work is a block of output channels, for all pixels.
struct Col2imPlan {
  explicit Col2imPlan(const ConvGeometry& g)
      : units(divide_up(g.large_c, kBlock)),
        pixels(g.batch * g.small_h * g.small_w),
        outputs(g.batch * g.large_h * g.large_w),
        value_size(divide_up(g.small_c, kBlock) * kBlock * pixels) {}

  int64_t scratch_size() const { return value_size + pixels * kColumns + outputs * kBlock; }

  int64_t units, pixels, outputs, value_size;
};

// Rows of the weight that are multiplied at once: one chain of sums.
constexpr int64_t kColumnDepth = 32;

// Rows of the weight, `row` elements apart, whose vectors are `vector` elements apart.
template <typename T>
struct Rows {
  const T* data;
  int64_t row, vector;
};

// Computes out += a b over `depth` rows of b, for kRows rows of the blocked operand.
template <int kRows, int kVectors, typename T>
void add_columns(const float* a, int64_t a_block, Rows<T> b, int64_t depth, float* out) {
  Vector sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Vector{};
  }
  for (int64_t k = 0; k < depth; ++k, b.data += b.row) {
    const float* const column = a + k / kBlock * a_block + k % kBlock;
    Vector row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = load(b.data + v * b.vector);
    for (int r = 0; r < kRows; ++r) {
      const Vector value = broadcast(column[r * kBlock]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] += value * row[v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      float* const to = out + r * kColumns + v * kWidth;
      store(to, load(to) + sums[r][v]);
    }
  }
}

template <typename T>
struct Col2imContraction {
  Col2imContraction(const ConvCall& call, float* scratch)
      : call(call),
        g(call.geometry),
        columns(call.geometry),
        values(scratch),
        products(values + columns.value_size),
        sums(products + columns.pixels * kColumns) {}

  // All units of a thread read the same pixels.
  void load_pixels() {
    Guard guard;
    with_prologue<T>(call.prologue, [&](const auto& read) {
      for (int64_t row = 0; row < columns.pixels; ++row) {
        load_position(read, g.small_c, row * g.small_c, true, row, columns.pixels, values, &guard);
      }
    });
  }

  void run(int64_t unit) {
    const int64_t c = unit * kBlock, count = smaller(kBlock, g.large_c - c);
    multiply_channels(c, count);
    add_up();
    double first[kBlock] = {}, second[kBlock] = {};
    for (int64_t v = 0; v < count; v += kWidth) {
      const int used = static_cast<int>(smaller(kWidth, count - v));
      if (call.epilogue.kind == Epilogue::plain) {
        store_as<PlainStore>(c + v, v, used, first + v, second + v);
      } else {
        store_as<GateStore>(c + v, v, used, first + v, second + v);
      }
    }
    if (!call.epilogue.counts) return;
    call.epilogue.counts[0] = static_cast<double>(columns.outputs);
    if (call.epilogue.kind == Epilogue::plain) take_moments(c, count, first, second);
    for (int64_t i = 0; i < count; ++i) {
      call.epilogue.first[c + i] = first[i];
      call.epilogue.second[c + i] = second[i];
    }
  }

 private:
  void multiply_channels(int64_t c, int64_t count) {
    const bool last = call.order == WeightOrder::channels_last;
    const int64_t width = count * kColumnTaps, stride = g.large_c * kColumnTaps;
    const int64_t a_block = columns.pixels * kBlock;
    for (int64_t i = 0; i < columns.pixels * kColumns; i += kWidth) store(products + i, Vector{});
    const T* b = static_cast<const T*>(call.weight) + (last ? c : c * kColumnTaps);
    // A vector of channels may be a whole block: the next one is the next tap's.
    const int64_t next_vector = last && kWidth == kBlock ? g.large_c : kWidth;
    for (int64_t k = 0; k < g.small_c; k += kColumnDepth, b += kColumnDepth * stride) {
      const int64_t depth = smaller(kColumnDepth, g.small_c - k);
      const int64_t next = smaller(kColumnDepth, g.small_c - k - depth);
      const float* a = values + k / kBlock * a_block;
      for (int64_t column = 0; column < width; column += kPanel) {
        const T* at = b + (last ? column / kBlock * g.large_c + column % kBlock : column);
        for (int64_t row = 0; row < next; ++row) {  // rows lie pages apart
          const T* ahead = at + (kColumnDepth + row) * stride;
          __builtin_prefetch(ahead, 0, 2);
          __builtin_prefetch(ahead + next_vector, 0, 2);
        }
        const Rows<T> rows = {at, stride, next_vector};
        if (width - column > kWidth) {
          add_rows<2>(a, a_block, rows, depth, products + column);
        } else {
          add_rows<1>(a, a_block, rows, depth, products + column);
        }
      }
    }
  }

  template <int kVectors>
  void add_rows(const float* a, int64_t a_block, const Rows<T>& b, int64_t depth,
                float* out) const {
    int64_t row = 0;
    for (; row + kTileRows <= columns.pixels; row += kTileRows) {
      add_columns<kTileRows, kVectors>(a + row * kBlock, a_block, b, depth, out + row * kColumns);
    }
    for (; row + 4 <= columns.pixels; row += 4) {
      add_columns<4, kVectors>(a + row * kBlock, a_block, b, depth, out + row * kColumns);
    }
    for (; row < columns.pixels; ++row) {
      add_columns<1, kVectors>(a + row * kBlock, a_block, b, depth, out + row * kColumns);
    }
  }

  // sums[output][kBlock] of the taps that meet there.
  void add_up() {
    for (int64_t i = 0; i < columns.outputs * kBlock; i += kWidth) store(sums + i, Vector{});
    for (int64_t pixel = 0; pixel < columns.pixels; ++pixel) {
      const int64_t x = pixel % g.small_w * g.stride_w - g.pad_w;
      const int64_t y = pixel / g.small_w % g.small_h * g.stride_h - g.pad_h;
      const int64_t image = pixel / (g.small_w * g.small_h) * g.large_h;
      for (int64_t v = 0; v < kBlock; v += kWidth) {
        for (int64_t tap = 0; tap < kColumnTaps; tap += kWidth) {
          Vector rows[kWidth];
          read_products(products + pixel * kColumns, v, tap, rows);
          for (int64_t i = 0; i < kWidth; ++i) {
            const int64_t at_y = y + (tap + i) / 4, at_x = x + (tap + i) % 4;
            if (at_y < 0 || at_y >= g.large_h || at_x < 0 || at_x >= g.large_w) continue;
            float* const to = sums + ((image + at_y) * g.large_w + at_x) * kBlock + v;
            store(to, load(to) + rows[i]);
          }
        }
      }
    }
  }

  // Vectors of channels, for kWidth taps.
  void read_products(const float* from, int64_t channel, int64_t tap,
                     Vector (&rows)[kWidth]) const {
    if (call.order == WeightOrder::channels_last) {
      for (int64_t i = 0; i < kWidth; ++i) rows[i] = load(from + (tap + i) * kBlock + channel);
      return;
    }
    for (int64_t i = 0; i < kWidth; ++i) rows[i] = load(from + (channel + i) * kColumnTaps + tap);
    transpose(rows);
  }

  template <template <typename, bool> typename Store>
  void store_as(int64_t c, int64_t v, int count, double* first, double* second) {
    if (count == kWidth) {
      store_channels(Store<T, true>(call.epilogue, c, count), v, first, second);
    } else {
      store_channels(Store<T, false>(call.epilogue, c, count), v, first, second);
    }
  }

  template <typename Write>
  void store_channels(const Write& write, int64_t v, double* first, double* second) {
    for (int64_t begin = 0; begin < columns.outputs; begin += kRun) {
      Moments moments;
      const int64_t end = smaller(begin + kRun, columns.outputs);
      for (int64_t i = begin; i < end; ++i) {
        write(i * g.large_c, load(sums + i * kBlock + v), &moments);
      }
      add_moments(moments, write.count, first, second);
    }
  }

  // Mean and sum of squares about it, of what is stored.
  void take_moments(int64_t c, int64_t count, double* first, double* second) const {
    const T* const out = static_cast<const T*>(call.epilogue.out) + c;
    double mean[kBlock] = {}, squares[kBlock] = {};
    for (int64_t at = 0; at < columns.outputs; ++at) {
      for (int64_t i = 0; i < count; ++i) mean[i] += widen(out[at * g.large_c + i]);
    }
    for (int64_t i = 0; i < count; ++i) mean[i] /= static_cast<double>(columns.outputs);
    for (int64_t at = 0; at < columns.outputs; ++at) {
      for (int64_t i = 0; i < count; ++i) {
        const double off = widen(out[at * g.large_c + i]) - mean[i];
        squares[i] += off * off;
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      first[i] = mean[i];
      second[i] = squares[i];
    }
  }

  static constexpr int64_t kRun = 16;  // outputs whose float sums are taken at once

  const ConvCall& call;
  const ConvGeometry& g;
  const Col2imPlan columns;
  float *values, *products, *sums;
};

}  // namespace genimg::cpu::GENIMG_ISA
