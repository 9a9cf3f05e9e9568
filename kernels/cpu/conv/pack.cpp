// Plans and packed weights of dgrad and fprop: panels of kPanel output channels, each with the
// matrices [depth][panel] that multiply the tiles (see tiles.h).
#include "pack.h"

#include "algorithms.h"
#include "contraction.h"

namespace genimg::cpu::GENIMG_ISA {
namespace {

// The sizes of a packed weight: `matrices` matrices of [depth][columns].
struct Packing {
  int64_t depth, columns, matrices;

  int64_t panels() const { return divide_up(columns, kPanel); }
  int64_t width(int64_t panel) const {
    return columns - panel * kPanel <= kWidth ? kWidth : kPanel;
  }
  int64_t size() const {
    const int64_t last = panels() - 1;
    return matrices * depth * (last * kPanel + width(last));
  }
};

Packing packing_of(const ConvGeometry& g, ConvDirection direction, ConvAlgorithm form) {
  const bool up = direction == ConvDirection::dgrad;
  const int64_t taps = g.kernel_h * g.kernel_w;
  const int64_t in = up ? g.small_c : g.large_c, out = up ? g.large_c : g.small_c;
  if (form == ConvAlgorithm::winograd_f2x2) return {in, out, 36};
  if (form == ConvAlgorithm::winograd_f3x2) return {in, out, 64};
  if (form == ConvAlgorithm::direct) return {in, out, taps};
  return up ? Packing{in, out * taps, 1} : Packing{in * taps, out, 1};
}

// The combinations of four taps in the order in which products take them: see winograd_up and
// winograd_down.
template <bool kUp, int kSize>
[[gnu::always_inline]] inline void combine_taps(const Vector* w, int stride, Vector* u) {
  const Vector w0 = w[0], w1 = w[stride], w2 = w[2 * stride], w3 = w[3 * stride];
  const Vector half = broadcast(0.5f);
  if constexpr (kUp && kSize == 2) {
    u[0] = w3, u[1] = w1 + w3, u[2] = w1;
    u[3] = w2, u[4] = w2 + w0, u[5] = w0;
  } else if constexpr (kUp) {
    u[0] = w3, u[1] = (w3 + w1) * half, u[2] = (w3 - w1) * half, u[3] = w1;
    u[4] = -w2, u[5] = (w2 + w0) * half, u[6] = (w2 - w0) * half, u[7] = w0;
  } else if constexpr (kSize == 2) {
    u[0] = w1, u[2] = w1 + w3, u[4] = w3;
    u[1] = w0, u[3] = w0 + w2, u[5] = w2;
  } else {
    u[0] = w1, u[2] = (w1 + w3) * half, u[4] = (w1 - w3) * half, u[6] = w3;
    u[1] = w0, u[3] = (w0 + w2) * half, u[5] = (w0 - w2) * half, u[7] = w2;
  }
}

template <bool kUp, int kSize>
void combine(const Vector* taps, float* packed, int64_t matrix) {
  constexpr int kCount = 2 * (kSize + 1);
  Vector rows[kCount][4];
  for (int j = 0; j < 4; ++j) {
    Vector u[kCount];
    combine_taps<kUp, kSize>(taps + j, 4, u);
    for (int i = 0; i < kCount; ++i) rows[i][j] = u[i];
  }
  for (int i = 0; i < kCount; ++i) {
    Vector u[kCount];
    combine_taps<kUp, kSize>(rows[i], 1, u);
    for (int j = 0; j < kCount; ++j) store(packed + (i * kCount + j) * matrix, u[j]);
  }
}

constexpr int64_t kFetchAhead = 4;
constexpr int64_t kSixteen = 16;  // taps of a 4x4 kernel, for which there is a transposition

// Distances from one column, and from one tap, of the weight to the next.
struct Strides {
  int64_t column, tap;
};

// Transposes a vector's columns from the weight's [columns][taps] to [taps][columns].
template <typename T>
void read_taps(const T* from, Strides strides, int64_t taps, int64_t count, Vector* out) {
  const int64_t stride = strides.column;
  if (stride == 1 && strides.tap > 1) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      out[tap] = count > 0 ? load(from + tap * strides.tap) : Vector{};
    }
    return;
  }
  if (taps == kSixteen) {
    for (int64_t tap = 0; tap < kSixteen; tap += kWidth) {
      Vector rows[kWidth];
      for (int64_t i = 0; i < kWidth; ++i) {
        // The hardware does not prefetch rows that are far apart.
        __builtin_prefetch(from + i * stride + kFetchAhead * kSixteen, 0, 2);
        rows[i] = i < count ? load(from + i * stride + tap) : Vector{};
      }
      transpose(rows);
      for (int64_t i = 0; i < kWidth; ++i) out[tap + i] = rows[i];
    }
    return;
  }
  for (int64_t tap = 0; tap < taps; ++tap) {
    float row[kWidth] = {};
    for (int64_t i = 0; i < count; ++i) row[i] = widen(from[i * stride + tap]);
    out[tap] = load(row);
  }
}

// Packs row k of a panel's matrices from the weight's [columns][taps] at `from`.
template <typename T>
void pack_row(const ConvGeometry& g, ConvAlgorithm form, bool up, const T* from, Strides strides,
              int64_t columns, int64_t width, float* packed, int64_t matrix, float* squares) {
  const int64_t taps = g.kernel_h * g.kernel_w;
  for (int64_t v = 0; v < width; v += kWidth) {
    const int64_t count = smaller(kWidth, larger(0, columns - v));
    Vector values[kMaxKernel * kMaxKernel];
    read_taps(from + v * strides.column, strides, taps, count, values);
    Vector sum = {};
    for (int64_t tap = 0; tap < taps; ++tap) sum += values[tap] * values[tap];
    for (int i = 0; i < kWidth; ++i) *squares += sum[i];
    const bool two = form == ConvAlgorithm::winograd_f2x2;
    if (!is_winograd(form)) {
      for (int64_t tap = 0; tap < taps; ++tap) store(packed + tap * matrix + v, values[tap]);
    } else if (up) {
      (two ? combine<true, 2> : combine<true, 3>)(values, packed + v, matrix);
    } else {
      (two ? combine<false, 2> : combine<false, 3>)(values, packed + v, matrix);
    }
  }
}

// Packs the one matrix of the algorithms for few channels: taps and channels are the columns of
// dgrad's and the rows of fprop's.
template <typename T>
void pack_few_row(const ConvGeometry& g, bool up, const T* weight, int64_t k, int64_t first,
                  int64_t columns, int64_t width, float* packed, float* squares) {
  const int64_t taps = g.kernel_h * g.kernel_w;
  for (int64_t i = 0; i < width; ++i) {
    float value = 0;
    if (i < columns) {
      const int64_t tap_and_channel = up ? first + i : k;
      const int64_t small = up ? k : first + i;
      const int64_t tap = tap_and_channel / g.large_c, large = tap_and_channel % g.large_c;
      value = widen(weight[(small * g.large_c + large) * taps + tap]);
    }
    packed[i] = value;
    *squares += value * value;
  }
}

template <typename T>
void pack(const ConvGeometry& g, ConvDirection direction, ConvAlgorithm form, WeightOrder order,
          const T* weight, float* packed, int* refused, int64_t begin, int64_t end) {
  const Packing p = packing_of(g, direction, form);
  const bool up = direction == ConvDirection::dgrad;
  const int64_t taps = g.kernel_h * g.kernel_w;
  const bool channels_last = order == WeightOrder::channels_last;
  const int64_t small_stride = g.large_c * taps, large_stride = channels_last ? 1 : taps;
  const int64_t row_stride = up ? small_stride : large_stride;
  const Strides strides = {up ? large_stride : small_stride, channels_last ? g.large_c : 1};
  float squares = 0;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t panel = item / p.depth, k = item % p.depth, first = panel * kPanel;
    const int64_t columns = smaller(kPanel, p.columns - first), width = p.width(panel);
    float* to = packed + first * p.matrices * p.depth + k * width;
    if (form == ConvAlgorithm::few) {
      pack_few_row(g, up, weight, k, first, columns, width, to, &squares);
    } else {
      pack_row(g, form, up, weight + k * row_stride + first * strides.column, strides, columns,
               width, to, p.depth * width, &squares);
    }
  }
  if (squares - squares != 0) __atomic_store_n(refused, 1, __ATOMIC_RELAXED);
}

}  // namespace

void conv_plan(const ConvGeometry& g, ConvDirection direction, bool plain, ConvPlan* plan) {
  const ConvAlgorithm form = algorithm_of(g, direction, plain);
  if (form == ConvAlgorithm::col2im) {
    const Col2imPlan columns(g);
    *plan = {form, 0, 0, columns.units, 1, columns.scratch_size()};
    return;
  }
  const Packing packing = packing_of(g, direction, form);
  plan->form = form;
  plan->packed = packing.size();
  plan->packing = packing.panels() * packing.depth;
  if (form == ConvAlgorithm::few && direction == ConvDirection::dgrad) {
    const FewUp few(g);
    plan->units = few.units();
    plan->scratch = few.scratch_size();
    plan->pieces = 0;
    return;
  }
  const Tiling tiling = tiling_of(g, direction, form);
  plan->pieces = tiling.all_blocks();
  plan->units = plan->pieces * tiling.splits();
  plan->scratch = Contraction<float>::scratch_size(tiling);
}

void conv_pack_f32(const ConvGeometry& geometry, ConvDirection direction, ConvAlgorithm form,
                   WeightOrder order, const float* weight, float* packed, int* refused,
                   int64_t begin, int64_t end) {
  pack(geometry, direction, form, order, weight, packed, refused, begin, end);
}

void conv_pack_bf16(const ConvGeometry& geometry, ConvDirection direction, ConvAlgorithm form,
                    WeightOrder order, const uint16_t* weight, float* packed, int* refused,
                    int64_t begin, int64_t end) {
  pack(geometry, direction, form, order, weight, packed, refused, begin, end);
}

}  // namespace genimg::cpu::GENIMG_ISA
