// The last stage of a convolution: takes products through the inverse transform and the epilogue.
#pragma once

#include "../elementary.h"
#include "load.h"

namespace genimg::cpu::GENIMG_ISA {

// For |x| above these, tanh is 1 in float, and sigmoid is 0 or 1.
constexpr float kTanhEnd = 9.5f, kSigmoidEnd = 80;

inline float tanh_of(float x) {
  const float size = x < 0 ? -x : x;
  const float e = expm1_of(-2 * (size > kTanhEnd ? kTanhEnd : size));
  const float positive = -e / (2 + e);
  return x < 0 ? -positive : positive;
}

inline float sigmoid_of(float x) {
  const float below = x < -kSigmoidEnd ? -kSigmoidEnd : x;
  return 1 / (1 + exp_of(-(below > kSigmoidEnd ? kSigmoidEnd : below)));
}

[[gnu::noinline]] inline Vector curve(Vector z, Epilogue::Activation activation) {
  float values[kWidth];
  store(values, z);
  if (activation == Epilogue::tanh) {
    for (int i = 0; i < kWidth; ++i) values[i] = tanh_of(values[i]);
  } else {
    for (int i = 0; i < kWidth; ++i) values[i] = sigmoid_of(values[i]);
  }
  return load(values);
}

// An epilogue's activation; no activation is LeakyReLU of slope 1.
struct Activate {
  explicit Activate(const Epilogue& e)
      : activation(e.activation), leaky(e.activation == Epilogue::leaky ? e.negative_slope : 1) {}

  Vector operator()(Vector z) const {
    return activation >= Epilogue::tanh ? curve(z, activation) : leaky(z, z);
  }

  const Epilogue::Activation activation;
  const Leaky leaky;
};

// Sums of a vector of channels over a block's pixels.
struct Moments {
  Vector first = {}, second = {};
};

// Stores outputs of one vector of channels, `count` of which exist; kFull: all.
template <typename T, bool kFull>
struct PlainStore {
  PlainStore(const Epilogue& e, int64_t c, int count)
      : out(static_cast<T*>(e.out) + c), bias(), activate(e), count(count) {
    if (e.bias) bias = load(e.bias + c);
  }

  [[gnu::always_inline]] void operator()(int64_t at, Vector value, Moments* moments) const {
    const Vector y = activate(value + bias);
    if constexpr (kFull) {
      store(out + at, y);
      moments->first += sizeof(T) == 2 ? load(out + at) : y;  // as stored
    } else {
      store_first(out + at, y, count);
      moments->first += load_first(out + at, count);
    }
  }

  T* const out;
  Vector bias;
  const Activate activate;
  const int count;
};

template <typename T, bool kFull>
struct GateStore {
  GateStore(const Epilogue& e, int64_t c, int count)
      : out(static_cast<T*>(e.out) + c),
        y(static_cast<const T*>(e.y) + c),
        mean(load(e.mean + c)),
        scale(load(e.scale + c)),
        shift(load(e.shift + c)),
        leaky(e.negative_slope),
        count(count) {}

  [[gnu::always_inline]] void operator()(int64_t at, Vector value, Moments* moments) const {
    const Vector centred = (kFull ? load(y + at) : load_first(y + at, count)) - mean;
    Vector dz = leaky(centred * scale + shift, value);
    if constexpr (kFull) {
      store(out + at, dz);
      if (sizeof(T) == 2) dz = load(out + at);
    } else {
      store_first(out + at, dz, count);
      dz = load_first(out + at, count);
    }
    moments->first += dz;
    moments->second += dz * centred;
  }

  T* const out;
  const T* const y;
  const Vector mean, scale, shift;
  const Leaky leaky;
  const int count;
};

// One axis of the inverse transform of F(kSize,2): kProducts products to y, in place; omitted
// products are 0.
template <int kSize, int kProducts>
[[gnu::always_inline]] inline void finish_axis(Vector (&m)[kMostProducts]) {
  if constexpr (kSize == 2) {
    const Vector y0 = kProducts == 1 ? m[0] : m[0] + m[1];
    if (kProducts == 3) m[1] = m[1] - m[2];
    m[0] = y0;
  } else if constexpr (kSize == 3 && kProducts > 1) {
    const Vector sum = m[1] + m[2], y1 = m[1] - m[2];
    if (kProducts == 4) m[2] = sum + m[3];
    m[0] = m[0] + sum;
    m[1] = y1;
  }
}

// Outputs of kProducts products: the last tile may have one output instead of two.
template <int kSize, int kProducts>
constexpr int kMade = kProducts == 1   ? 1
                      : kSize == 3     ? kProducts - 1
                      : kProducts == 3 ? 2
                                       : 1;

// The inverse transform in two dimensions: m is [kH][kW] products, y [outputs_h][outputs_w].
template <int kSize, int kH, int kW>
[[gnu::always_inline]] inline void finish_tile(const float* m, int64_t product,
                                               Vector (&y)[kMostOutputs][kMostProducts]) {
  for (int j = 0; j < kW; ++j) {
    Vector column[kMostProducts];
    for (int i = 0; i < kH; ++i) column[i] = load(m + (i * kW + j) * product);
    finish_axis<kSize, kH>(column);
    for (int i = 0; i < kMade<kSize, kH>; ++i) y[i][j] = column[i];
  }
  for (int i = 0; i < kMade<kSize, kH>; ++i) finish_axis<kSize, kW>(y[i]);
}

// Where the tiles of a block write: the offset of each tile's first output in the first output
// phases.
struct Outputs {
  int64_t at[kTileCount];
  int64_t output_phase_at;  // from there to this output phase's
  int64_t step_h, step_w;
};

// How the products of an output phase, in scratch as [kTileCount][kPanel] each, become outputs.
struct Inverse {
  int size;  // of F(size,2); 1: no transform
  int products_h, products_w, outputs_h, outputs_w;
};

template <int kSize, int kH, int kW, typename Store>
inline void finish_vector(const Inverse& inverse, const Outputs& outputs, int64_t used,
                          const float* products, const Store& write, Moments* moments) {
  constexpr int64_t product = kTileCount * kPanel;
  Moments sums;
  for (int64_t row = 0; row < used; ++row) {
    Vector y[kMostOutputs][kMostProducts];
    finish_tile<kSize, kH, kW>(products + row * kPanel, product, y);
    Moments tile;  // sums of sums: short chains round less
    const int64_t at = outputs.at[row] + outputs.output_phase_at;
    for (int i = 0; i < kMade<kSize, kH>; ++i) {
      if (i >= inverse.outputs_h) break;
      for (int j = 0; j < kMade<kSize, kW>; ++j) {
        if (j >= inverse.outputs_w) break;
        write(at + i * outputs.step_h + j * outputs.step_w, y[i][j], &tile);
      }
    }
    sums.first += tile.first;
    sums.second += tile.second;
  }
  *moments = sums;
}

template <int value>
struct Constant {};

// Calls with(Constant<products>) for the number of products that an output phase has.
template <int kSize, typename With>
inline void with_products(int products, With with) {
  if (products == 1) with(Constant<1>{});
  if constexpr (kSize == 2) {
    if (products == 2) with(Constant<2>{});
  }
  if constexpr (kSize > 1) {
    if (products == 3) with(Constant<3>{});
  }
  if constexpr (kSize == 3) {
    if (products == 4) with(Constant<4>{});
  }
}

template <int kSize, typename Store>
inline void finish_sized(const Inverse& inverse, const Outputs& outputs, int64_t used,
                         const float* products, const Store& write, Moments* moments) {
  with_products<kSize>(inverse.products_h, [&]<int kH>(Constant<kH>) {
    with_products<kSize>(inverse.products_w, [&]<int kW>(Constant<kW>) {
      finish_vector<kSize, kH, kW>(inverse, outputs, used, products, write, moments);
    });
  });
}

template <typename Store>
inline void finish_output_phase(const Inverse& inverse, const Outputs& outputs, int64_t used,
                                const float* products, const Store& write, Moments* moments) {
  if (inverse.size == 1) finish_sized<1>(inverse, outputs, used, products, write, moments);
  if (inverse.size == 2) finish_sized<2>(inverse, outputs, used, products, write, moments);
  if (inverse.size == 3) finish_sized<3>(inverse, outputs, used, products, write, moments);
}

// Adds a vector's sums to those of the channels.
inline void add_moments(const Moments& moments, int count, double* first, double* second) {
  float firsts[kWidth], seconds[kWidth];
  store(firsts, moments.first);
  store(seconds, moments.second);
  for (int i = 0; i < count; ++i) {
    first[i] += firsts[i];
    second[i] += seconds[i];
  }
}

// Sum and sum of squares about `mean` of the stored values of a block, for one vector of channels.
template <typename T>
inline Moments moments_about(Vector mean, const Outputs& outputs, int64_t used, int outputs_h,
                             int outputs_w, const T* out, int count) {
  Moments sums;
  for (int64_t row = 0; row < used; ++row) {
    for (int i = 0; i < outputs_h; ++i) {
      for (int j = 0; j < outputs_w; ++j) {
        const T* p = out + outputs.at[row] + outputs.output_phase_at + i * outputs.step_h +
                     j * outputs.step_w;
        const Vector d = (count == kWidth ? load(p) : load_first(p, count)) - mean;
        sums.first += d;
        sums.second += d * d;
      }
    }
  }
  return sums;
}

}  // namespace genimg::cpu::GENIMG_ISA
