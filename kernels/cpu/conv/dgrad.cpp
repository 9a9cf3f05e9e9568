#include "dgrad.h"

#include "col2im.h"
#include "contraction.h"
#include "few.h"

namespace genimg::cpu::GENIMG_ISA {
namespace {

template <typename T>
struct FewContraction {
  FewContraction(const ConvCall& call, float* scratch)
      : call(call),
        g(call.geometry),
        few(call.geometry),
        values(scratch),
        products(values + few.value_size()),
        line(products + few.product_size() + kTileCount * kPanel) {}

  // Returns false where the input was refused.
  bool run(int64_t unit) {
    const int64_t image = unit / few.strips;
    const int64_t begin = unit % few.strips * few.rows;
    const int64_t end = smaller(begin + few.rows, g.large_h);
    const int64_t first = few.first_small(begin), last = few.last_small(end);
    if (last >= first && !multiply_rows_of(image, first, last)) return false;
    for (int64_t row = begin; row < end; ++row) {
      gather_row(row, first);
      store_row((image * g.large_h + row) * g.large_w * g.large_c);
    }
    return true;
  }

 private:
  // Computes products[panel][pixel][kPanel] of the small image's rows.
  bool multiply_rows_of(int64_t image, int64_t first, int64_t last) {
    const int64_t begin = (image * g.small_h + first) * g.small_w;
    const int64_t count = (last - first + 1) * g.small_w;
    Guard guard;
    for (int64_t pixel = 0; pixel < count; pixel += kTileCount) {
      const int64_t used = smaller(kTileCount, count - pixel);
      with_prologue<T>(call.prologue, [&](const auto& read) {
        for (int64_t row = 0; row < used; ++row) {
          load_position(read, g.small_c, (begin + pixel + row) * g.small_c, true, row, kTileCount,
                        values, &guard);
        }
      });
      for (int64_t column = 0; column < few.columns; column += kPanel) {
        const Term term = {values, call.packed + column * g.small_c};
        multiply(&term, 1, g.small_c, kTileCount, used, few.columns - column,
                 products + column * few.pixels() + pixel * kPanel);
      }
    }
    return !guard.refuses();
  }

  // Sets line to the bias plus the products of the taps that reach an output row.
  void gather_row(int64_t row, int64_t first) {
    const int64_t channels = g.large_c;
    for (int64_t x = 0; x < g.large_w; ++x) {
      for (int64_t c = 0; c < channels; ++c) {
        line[x * channels + c] = call.epilogue.bias ? call.epilogue.bias[c] : 0;
      }
    }
    for (int64_t k_h = 0; k_h < g.kernel_h; ++k_h) {
      const int64_t from = row + g.pad_h - k_h;
      if (from < 0 || from % g.stride_h != 0 || from / g.stride_h >= g.small_h) continue;
      const int64_t pixels = (from / g.stride_h - first) * g.small_w;
      for (int64_t k_w = 0; k_w < g.kernel_w; ++k_w) {
        for (int64_t c = 0; c < channels; ++c) {
          gather_tap(k_w - g.pad_w, pixels, (k_h * g.kernel_w + k_w) * channels + c, line + c);
        }
      }
    }
  }

  // Adds the column of pixel j of the small row to pixel stride * j + offset of the large one.
  void gather_tap(int64_t offset, int64_t pixels, int64_t column, float* __restrict to) {
    const int64_t begin = offset >= 0 ? 0 : divide_up(-offset, g.stride_w);
    const int64_t last = g.large_w - 1 - offset;
    const int64_t end = last < 0 ? 0 : smaller(g.small_w, last / g.stride_w + 1);
    const float* from =
        products + column / kPanel * kPanel * few.pixels() + pixels * kPanel + column % kPanel;
    const int64_t step = g.stride_w * g.large_c;
    to += offset * g.large_c;
    for (int64_t j = begin; j < end; ++j) to[j * step] += from[j * kPanel];
  }

  void store_row(int64_t at) {
    T* out = static_cast<T*>(call.epilogue.out) + at;
    const int64_t count = g.large_w * g.large_c;
    const Activate activate(call.epilogue);
    const auto value = [&](int64_t i) { return activate(load(line + i)); };
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) store(out + i, value(i));
    if (i < count) store_first(out + i, value(i), static_cast<int>(count - i));
  }

  const ConvCall& call;
  const ConvGeometry& g;
  const FewUp few;
  float *values, *products, *line;
};

template <typename T>
void dgrad(const ConvCall& call, float* scratch, int64_t begin, int64_t end) {
  if (call.form == ConvAlgorithm::col2im) {
    Col2imContraction<T> contraction(call, scratch);
    contraction.load_pixels();
    for (int64_t unit = begin; unit < end; ++unit) contraction.run(unit);
    return;
  }
  if (call.form != ConvAlgorithm::few) {
    contract<T>(call, ConvDirection::dgrad, scratch, begin, end);
    return;
  }
  FewContraction<T> contraction(call, scratch);
  for (int64_t unit = begin; unit < end; ++unit) {
    if (__atomic_load_n(call.refused, __ATOMIC_RELAXED)) return;
    if (!contraction.run(unit)) __atomic_store_n(call.refused, 1, __ATOMIC_RELAXED);
  }
}

}  // namespace

void conv_dgrad_f32(const ConvCall& call, float* scratch, int64_t begin, int64_t end) {
  dgrad<float>(call, scratch, begin, end);
}

void conv_dgrad_bf16(const ConvCall& call, float* scratch, int64_t begin, int64_t end) {
  dgrad<uint16_t>(call, scratch, begin, end);
}

}  // namespace genimg::cpu::GENIMG_ISA
