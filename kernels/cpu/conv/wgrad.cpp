#include "wgrad.h"

#include "algorithms.h"
#include "few.h"
#include "load.h"

namespace genimg::cpu::GENIMG_ISA {
namespace {

// A term of a product, in two dimensions: sums[packed] += small[value]^T large[product].
struct Outer {
  int64_t value, product, packed;
};

constexpr int kMostOuters = kMaxKernel * kMaxKernel;

// The number of transformed gradients of an axis: the products of its output phases.
int64_t products_of(const Axis& axis) {
  return axis.output_phase[0].products +
         (axis.output_phases == 2 ? axis.output_phase[1].products : 0);
}

// Calls visit(value, product, packed) for the terms of an axis.
template <typename Visit>
void each_term(const Axis& axis, Visit visit) {
  int product = 0;
  for (int i = 0; i < axis.output_phases; ++i) {
    for (int m = 0; m < axis.output_phase[i].products; ++m, ++product) {
      const Product& p = axis.output_phase[i].product[m];
      for (int term = 0; term < p.terms; ++term) visit(p.value[term], product, p.packed[term]);
    }
  }
}

int find_outers(const Tiling& t, int64_t pass, Outer* outers) {
  const Axis &h = t.axis_h(pass), &w = t.axis_w(pass);
  const int64_t products_w = products_of(w);
  int count = 0;
  each_term(h, [&](int value_h, int product_h, int packed_h) {
    each_term(w, [&](int value_w, int product_w, int packed_w) {
      outers[count++] = {static_cast<int64_t>(value_h) * w.values + value_w,
                         product_h * products_w + product_w, packed_h * t.packed_w + packed_w};
    });
  });
  return count;
}

// The adjoint of finish_axis: from the outputs' gradients to the products' gradients; outputs that
// the last tile lacks are 0.
template <int kSize, int kProducts>
[[gnu::always_inline]] inline void spread_axis(Vector (&m)[kMostProducts]) {
  if constexpr (kSize == 2 && kProducts > 1) {
    const Vector g0 = m[0], g1 = m[1];
    m[1] = g0 + g1;
    if (kProducts == 3) m[2] = -g1;
  } else if constexpr (kSize == 3 && kProducts > 1) {
    const Vector g0 = m[0], g1 = m[1], g2 = m[2], sum = g0 + g2;
    m[1] = sum + g1;
    m[2] = sum - g1;
    if (kProducts == 4) m[3] = g2;
  }
}

// How the tiles of one output phase read the large image.
struct Reading {
  const Tiling& t;
  const Axis &h, &w;
  const OutputPhase &output_phase_h, &output_phase_w;
  int64_t product, products_w;  // the output phase's first product, and those of a row
  int64_t size;                 // of a transformed gradient
};

template <int kSize, int kH, int kW, typename Read>
void spread_tile(const Reading& r, const Read& prologue, const Cursor& at, int64_t row,
                 float* values, Guard* guard) {
  const Tiling& t = r.t;
  Guard sum = *guard;
  const int64_t y = at.at_h() * r.h.out_step + r.output_phase_h.out_at;
  const int64_t x = at.at_w() * r.w.out_step + r.output_phase_w.out_at;
  const int64_t origin = ((at.image * t.out_h + y) * t.out_w + x) * t.out_c;
  const int64_t step_h = r.h.out_stride * t.out_w * t.out_c, step_w = r.w.out_stride * t.out_c;
  over_vectors(t.out_c, [&](int64_t c, int count) __attribute__((always_inline)) {
    const auto read = [&](int i, int j) __attribute__((always_inline)) {
      const int64_t p = origin + i * step_h + j * step_w + c;
      return sum(count == kWidth ? prologue.all(p, c) : prologue.first(p, c, count));
    };
    Vector columns[kMostProducts][kMostProducts];
    for (int j = 0; j < kMostOutputs; ++j) {
      Vector m[kMostProducts] = {};
      for (int i = 0; i < kMostOutputs; ++i) {
        if (i < r.output_phase_h.outputs && j < r.output_phase_w.outputs) m[i] = read(i, j);
      }
      spread_axis<kSize, kH>(m);
      for (int i = 0; i < kH; ++i) columns[i][j] = m[i];
    }
    for (int i = 0; i < kH; ++i) {
      spread_axis<kSize, kW>(columns[i]);
      for (int j = 0; j < kW; ++j) {
        const int64_t product = r.product + i * r.products_w + j;
        store(values + product * r.size + blocked(c, row, t.rows), columns[i][j]);
      }
    }
  });
  *guard = sum;
}

template <int kSize, typename Read>
void spread_sized(const Reading& r, const Read& prologue, const Cursor& at, int64_t row,
                  float* values, Guard* guard) {
  with_products<kSize>(r.output_phase_h.products, [&]<int kH>(Constant<kH>) {
    with_products<kSize>(r.output_phase_w.products, [&]<int kW>(Constant<kW>) {
      spread_tile<kSize, kH, kW>(r, prologue, at, row, values, guard);
    });
  });
}

// Loads tiles [first, first + used) of the large image into the rows from 0 on.
template <typename T>
void spread_block(const Tiling& t, int64_t pass, const Prologue& prologue, int64_t first,
                  int64_t used, float* values, Guard* guard) {
  const Axis &h = t.axis_h(pass), &w = t.axis_w(pass);
  const int64_t products_w = products_of(w), size = divide_up(t.out_c, kBlock) * kBlock * t.rows;
  with_prologue<T>(prologue, [&](const auto& read) {
    int64_t product_h = 0;
    for (int i = 0; i < h.output_phases; product_h += h.output_phase[i++].products) {
      int64_t product_w = 0;
      for (int j = 0; j < w.output_phases; product_w += w.output_phase[j++].products) {
        const Reading reading = {t,
                                 h,
                                 w,
                                 h.output_phase[i],
                                 w.output_phase[j],
                                 product_h * products_w + product_w,
                                 products_w,
                                 size};
        Cursor at(h, w, first);
        for (int64_t row = 0; row < used; ++row, at.advance()) {
          if (t.size == 1) spread_sized<1>(reading, read, at, row, values, guard);
          if (t.size == 2) spread_sized<2>(reading, read, at, row, values, guard);
          if (t.size == 3) spread_sized<3>(reading, read, at, row, values, guard);
        }
      }
    }
  });
}

// The algorithm for few channels: multiplies the small image's pixels by all taps' channels of the
// large image, side by side.
template <typename T>
void load_few(const Tiling& t, const WgradCall& call, int64_t first, int64_t used,
              float* small_values, float* large_values, Guard* guard) {
  const ConvGeometry& g = call.geometry;
  load_block<T>(t, t.axis_h(0), t.axis_w(0), call.large, first, used, large_values, guard);
  with_prologue<T>(call.small, [&](const auto& read) {
    for (int64_t row = 0; row < used; ++row) {
      load_position(read, g.small_c, (first + row) * g.small_c, true, row, t.rows, small_values,
                    guard);
    }
  });
}

Tiling wgrad_tiling(const ConvGeometry& g, const WgradPlan& plan) {
  const ConvDirection direction =
      plan.form == ConvAlgorithm::few ? ConvDirection::fprop : ConvDirection::dgrad;
  Tiling t = tiling_of(g, direction, plan.form);
  t.rows = plan.rows;
  return t;
}

// Rows and columns of a matrix of sums, in whole blocks.
int64_t sum_rows(const ConvGeometry& g) { return divide_up(g.small_c, kBlock) * kBlock; }
int64_t sum_columns(const ConvGeometry& g, ConvAlgorithm form) {
  const int64_t taps = form == ConvAlgorithm::few ? g.kernel_h * g.kernel_w : 1;
  return divide_up(g.large_c * taps, kBlock) * kBlock;
}

template <typename T>
void load_chunk(const WgradCall& call, const WgradChunk& chunk, int64_t begin, int64_t end) {
  const Tiling t = wgrad_tiling(call.geometry, call.plan);
  const int64_t first = chunk.first + begin, used = end - begin;
  float* small_values = call.small_values + begin * kBlock;
  float* large_values = call.large_values + begin * kBlock;
  Guard guard;
  if (call.plan.form == ConvAlgorithm::few) {
    load_few<T>(t, call, first, used, small_values, large_values, &guard);
  } else {
    load_block<T>(t, t.axis_h(chunk.pass), t.axis_w(chunk.pass), call.small, first, used,
                  small_values, &guard);
    spread_block<T>(t, chunk.pass, call.large, first, used, large_values, &guard);
  }
  if (guard.refuses()) __atomic_store_n(call.refused, 1, __ATOMIC_RELAXED);
}

// The adjoint of combine_taps: from the sums u of the combinations to the gradients of the taps.
template <int kSize>
[[gnu::always_inline]] inline void separate_taps(const Vector* u, Vector* w, int stride) {
  const Vector half = broadcast(0.5f);
  if constexpr (kSize == 2) {
    w[3 * stride] = u[0] + u[1];
    w[1 * stride] = u[1] + u[2];
    w[2 * stride] = u[3] + u[4];
    w[0] = u[4] + u[5];
  } else {
    w[3 * stride] = u[0] + half * (u[1] + u[2]);
    w[1 * stride] = u[3] + half * (u[1] - u[2]);
    w[2 * stride] = half * (u[5] + u[6]) - u[4];
    w[0] = u[7] + half * (u[5] - u[6]);
  }
}

template <int kSize>
inline void separate(const float* sums, int64_t matrix, Vector* taps) {
  constexpr int kCount = 2 * (kSize + 1);
  Vector rows[4][kCount];
  for (int j = 0; j < kCount; ++j) {
    Vector column[kCount], four[4];
    for (int i = 0; i < kCount; ++i) column[i] = load(sums + (i * kCount + j) * matrix);
    separate_taps<kSize>(column, four, 1);
    for (int i = 0; i < 4; ++i) rows[i][j] = four[i];
  }
  for (int i = 0; i < 4; ++i) separate_taps<kSize>(rows[i], taps + i * 4, 1);
}

// Writes the gradient of the taps of one row's channels in the weight's order, [channels][taps] or
// [taps][channels].
template <typename T>
struct TapsOut {
  // A vector of channels from c on, `count` of which exist.
  void put(const Vector* values, int64_t c, int64_t count) const {
    if (pixels) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        T* const to = out + tap * channels + c;
        if (count == kWidth) {
          store(to, values[tap]);
        } else {
          store_first(to, values[tap], static_cast<int>(count));
        }
      }
    } else if (taps == 16) {
      for (int64_t tap = 0; tap < taps; tap += kWidth) {
        Vector rows[kWidth];
        for (int i = 0; i < kWidth; ++i) rows[i] = values[tap + i];
        transpose(rows);
        for (int64_t i = 0; i < count; ++i) store(out + (c + i) * taps + tap, rows[i]);
      }
    } else {
      for (int64_t tap = 0; tap < taps; ++tap) {
        T row[kWidth];
        store(row, values[tap]);
        for (int64_t i = 0; i < count; ++i) out[(c + i) * taps + tap] = row[i];
      }
    }
  }

  T* out;
  int64_t channels, taps;
  bool pixels;
};

inline void put(float* p, float value) { *p = value; }
inline void put(uint16_t* p, float value) { *p = f32_to_bf16(value); }

template <typename T>
void finish(const WgradCall& call, T* grad_weight, bool pixels, int64_t begin, int64_t end) {
  const ConvGeometry& g = call.geometry;
  const ConvAlgorithm form = call.plan.form;
  const int64_t taps = g.kernel_h * g.kernel_w, columns = sum_columns(g, form);
  const int64_t matrix = sum_rows(g) * columns;
  for (int64_t row = begin; row < end; ++row) {
    const float* sums = call.sums + row * columns;
    T* const out = grad_weight + row * g.large_c * taps;
    if (form == ConvAlgorithm::few) {  // [taps][channels] as they are
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t c = 0; c < g.large_c; ++c) {
          put(out + (pixels ? tap * g.large_c + c : c * taps + tap), sums[tap * g.large_c + c]);
        }
      }
      continue;
    }
    const TapsOut<T> to = {out, g.large_c, taps, pixels};
    for (int64_t c = 0; c < g.large_c; c += kWidth) {
      Vector values[kMaxKernel * kMaxKernel];
      if (form == ConvAlgorithm::winograd_f2x2) {
        separate<2>(sums + c, matrix, values);
      } else if (form == ConvAlgorithm::winograd_f3x2) {
        separate<3>(sums + c, matrix, values);
      } else {
        for (int64_t tap = 0; tap < taps; ++tap) values[tap] = load(sums + tap * matrix + c);
      }
      to.put(values, c, smaller(kWidth, g.large_c - c));
    }
  }
}

// Bytes of a chunk's transformed images: what fits in the cache, or more where the sums, which
// every chunk reads and writes, are larger.
constexpr int64_t kChunkFloats = 1 << 20;

}  // namespace

void conv_wgrad_plan(const ConvGeometry& g, WgradPlan* plan) {
  const int64_t rows = sum_rows(g);
  plan->form = wgrad_algorithm(g);
  plan->rows = 1;
  const Tiling t = wgrad_tiling(g, *plan);
  const bool few = plan->form == ConvAlgorithm::few;
  int64_t small = 1, large = 1, most = 1;
  for (int64_t pass = 0; pass < t.passes(); ++pass) {
    most = larger(most, t.tiles(pass));
    if (few) continue;
    small = larger(small, static_cast<int64_t>(t.axis_h(pass).values) * t.axis_w(pass).values);
    large = larger(large, products_of(t.axis_h(pass)) * products_of(t.axis_w(pass)));
  }
  small *= rows;
  large *= sum_columns(g, plan->form);
  plan->sums = t.packed_rows * rows * sum_columns(g, plan->form);
  plan->rows = smaller(most, larger(64, larger(kChunkFloats, 2 * plan->sums) / (small + large)));
  plan->small = small * plan->rows;
  plan->large = large * plan->rows;
  plan->chunks = 0;
  for (int64_t pass = 0; pass < t.passes(); ++pass) {
    plan->chunks += divide_up(t.tiles(pass), plan->rows);
  }
}

void conv_wgrad_chunk(const ConvGeometry& g, const WgradPlan& plan, int64_t number,
                      WgradChunk* chunk) {
  const Tiling t = wgrad_tiling(g, plan);
  int64_t pass = 0;
  for (; number >= t.blocks(pass); ++pass) number -= t.blocks(pass);
  chunk->pass = pass;
  chunk->first = number * plan.rows;
  chunk->used = smaller(plan.rows, t.tiles(pass) - chunk->first);
  Outer outers[kMostOuters];
  const int64_t terms = plan.form == ConvAlgorithm::few ? 1 : find_outers(t, pass, outers);
  chunk->products = terms * (sum_rows(g) / kBlock);
}

void conv_wgrad_load_f32(const WgradCall& call, const WgradChunk& chunk, int64_t begin,
                         int64_t end) {
  load_chunk<float>(call, chunk, begin, end);
}

void conv_wgrad_load_bf16(const WgradCall& call, const WgradChunk& chunk, int64_t begin,
                          int64_t end) {
  load_chunk<uint16_t>(call, chunk, begin, end);
}

void conv_wgrad_multiply(const WgradCall& call, const WgradChunk& chunk, int64_t begin,
                         int64_t end) {
  const ConvGeometry& g = call.geometry;
  const Tiling t = wgrad_tiling(g, call.plan);
  const int64_t blocks = sum_rows(g) / kBlock, columns = sum_columns(g, call.plan.form);
  Outer outers[kMostOuters] = {};
  if (call.plan.form != ConvAlgorithm::few) find_outers(t, chunk.pass, outers);
  for (int64_t item = begin; item < end; ++item) {
    const Outer& outer = outers[item / blocks];
    const int64_t block = item % blocks;
    add_outer(call.small_values + (outer.value * blocks + block) * t.rows * kBlock,
              call.large_values + outer.product * columns * t.rows, columns, t.rows, chunk.used,
              call.sums + (outer.packed * blocks + block) * kBlock * columns, columns);
  }
}

void conv_wgrad_finish_f32(const WgradCall& call, float* grad_weight, bool pixels, int64_t begin,
                           int64_t end) {
  finish(call, grad_weight, pixels, begin, end);
}

void conv_wgrad_finish_bf16(const WgradCall& call, uint16_t* grad_weight, bool pixels,
                            int64_t begin, int64_t end) {
  finish(call, grad_weight, pixels, begin, end);
}

}  // namespace genimg::cpu::GENIMG_ISA
