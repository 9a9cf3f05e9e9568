// The first stage of a convolution: a block of tiles through the prologue and the input transform,
// into blocked operands [value][depth / kBlock][rows][kBlock].
#pragma once

#include "../leaky.h"
#include "tiles.h"

namespace genimg::cpu::GENIMG_ISA {

// The im2col algorithm for few channels gathers all their taps into a row.
constexpr int64_t kFewChannels = 8;

// Prologues: element `at` of the image, channel c of it, `count` channels.
template <typename T>
struct Plain {
  static constexpr bool kPlain = true;

  explicit Plain(const Prologue& p) : x(static_cast<const T*>(p.x)) {}

  Vector all(int64_t at, int64_t) const { return load(x + at); }
  Vector first(int64_t at, int64_t, int count) const { return load_first(x + at, count); }
  float one(int64_t at, int64_t) const { return widen(x[at]); }

  const T* x;
};

template <typename T>
struct AffineLeaky {
  static constexpr bool kPlain = false;

  explicit AffineLeaky(const Prologue& p)
      : x(static_cast<const T*>(p.x)),
        mean(p.mean),
        scale(p.scale),
        shift(p.shift),
        leaky(p.negative_slope) {}

  Vector apply(Vector v, int64_t c) const {
    const Vector z = (v - load(mean + c)) * load(scale + c) + load(shift + c);
    return leaky(z, z);
  }
  Vector all(int64_t at, int64_t c) const { return apply(load(x + at), c); }
  Vector first(int64_t at, int64_t c, int count) const {
    return apply(load_first(x + at, count), c);
  }
  float one(int64_t at, int64_t c) const {
    const float z = (widen(x[at]) - mean[c]) * scale[c] + shift[c];
    return leaky(z, z);
  }

  const T* x;
  const float *mean, *scale, *shift;
  const Leaky leaky;
};

template <typename T>
struct TwoTensor {
  static constexpr bool kPlain = false;

  explicit TwoTensor(const Prologue& p)
      : x(static_cast<const T*>(p.x)),
        y(static_cast<const T*>(p.y)),
        mean(p.mean),
        scale(p.scale),
        shift(p.shift),
        slope(p.slope) {}

  Vector apply(Vector v, Vector other, int64_t c) const {
    return v * load(scale + c) + ((other - load(mean + c)) * load(slope + c) + load(shift + c));
  }
  Vector all(int64_t at, int64_t c) const { return apply(load(x + at), load(y + at), c); }
  Vector first(int64_t at, int64_t c, int count) const {
    return apply(load_first(x + at, count), load_first(y + at, count), c);
  }
  float one(int64_t at, int64_t c) const {
    return widen(x[at]) * scale[c] + ((widen(y[at]) - mean[c]) * slope[c] + shift[c]);
  }

  const T *x, *y;
  const float *mean, *scale, *shift, *slope;
};

// Calls use(prologue) with the prologue that `p.kind` selects.
template <typename T, typename Use>
inline void with_prologue(const Prologue& p, Use use) {
  if (p.kind == Prologue::none) {
    use(Plain<T>(p));
  } else if (p.kind == Prologue::affine_leaky) {
    use(AffineLeaky<T>(p));
  } else {
    use(TwoTensor<T>(p));
  }
}

// The sum of the squares of all elements read: not finite if one is not finite or is above 2^63.
struct Guard {
  Vector squares = {};

  Vector operator()(Vector v) {
    squares += v * v;
    return v;
  }
  bool refuses() const {
    int bad = 0;
    for (int i = 0; i < kWidth; ++i) bad |= !(squares[i] - squares[i] == 0);
    return bad != 0;
  }
};

// The positions of a tile: their offsets in the image, and whether they are inside it. A position
// outside has the offset of one inside, so that it can be read, and is masked.
struct Patch {
  int64_t at[64];
  int32_t inside[64];  // all bits or none
  bool whole;
};

template <int kSide>
inline void find_patch(const Tiling& t, const Axis& h, const Axis& w, int64_t image, int64_t tile_h,
                       int64_t tile_w, Patch* patch) {
  const int64_t first_h = tile_h * h.in_step + h.in_at[0];
  const int64_t first_w = tile_w * w.in_step + w.in_at[0];
  patch->whole =
      first_h >= 0 && first_h + kSide <= t.in_h && first_w >= 0 && first_w + kSide <= t.in_w;
  for (int i = 0; i < kSide; ++i) {
    const int64_t row = smaller(larger(first_h + i, 0), t.in_h - 1);
    for (int j = 0; j < kSide; ++j) {
      const int64_t column = smaller(larger(first_w + j, 0), t.in_w - 1);
      patch->at[i * kSide + j] = ((image * t.in_h + row) * t.in_w + column) * t.in_c;
      patch->inside[i * kSide + j] = row == first_h + i && column == first_w + j ? -1 : 0;
    }
  }
}

inline Vector masked(Vector v, int32_t mask) {
  return reinterpret_cast<Vector>(reinterpret_cast<Mask>(v) & (mask - Mask{}));
}

// One axis of the input transforms: see winograd_up and winograd_down.
template <Transform kTransform>
[[gnu::always_inline]] inline void transform_axis(const Vector* in, Vector* out) {
  const auto x = [=](int i) __attribute__((always_inline)) { return in[i]; };
  if constexpr (kTransform == Transform::up2) {
    out[0] = x(0) - x(1);
    out[1] = x(1);
    out[2] = x(1) - x(2);
    out[3] = x(2);
    out[4] = x(2) - x(3);
  } else if constexpr (kTransform == Transform::up3) {
    out[0] = x(0) - x(2);
    out[1] = x(1) + x(2);
    out[2] = x(2) - x(1);
    out[3] = x(3) - x(1);
    out[4] = x(2) + x(3);
    out[5] = x(3) - x(2);
    out[6] = x(4) - x(2);
  } else if constexpr (kTransform == Transform::down2) {  // x = (o-1, e0, o0, e1, o1, e2)
    out[0] = x(1) - x(3);
    out[1] = x(0) - x(2);
    out[2] = x(3);
    out[3] = x(2);
    out[4] = x(3) - x(5);
    out[5] = x(2) - x(4);
  } else {  // x = (o-1, e0, o0, e1, o1, e2, o2, e3)
    out[0] = x(1) - x(5);
    out[1] = x(0) - x(4);
    out[2] = x(3) + x(5);
    out[3] = x(2) + x(4);
    out[4] = x(5) - x(3);
    out[5] = x(4) - x(2);
    out[6] = x(7) - x(3);
    out[7] = x(6) - x(2);
  }
}

template <Transform kTransform>
constexpr int kPositions = kTransform == Transform::up2     ? 4
                           : kTransform == Transform::up3   ? 5
                           : kTransform == Transform::down2 ? 6
                                                            : 8;
template <Transform kTransform>
constexpr int kValues = kTransform == Transform::up2     ? 5
                        : kTransform == Transform::up3   ? 7
                        : kTransform == Transform::down2 ? 6
                                                         : 8;

// Transforms a vector of channels of a tile. read(position) returns the input's vector.
template <Transform kTransform, typename Read>
[[gnu::always_inline]] inline void transform_vector(Read read, float* out, int64_t value_size) {
  constexpr int kIn = kPositions<kTransform>, kOut = kValues<kTransform>;
  Vector columns[kOut][kIn];
  for (int j = 0; j < kIn; ++j) {
    Vector x[kIn], a[kOut];
    for (int i = 0; i < kIn; ++i) x[i] = read(i * kIn + j);
    transform_axis<kTransform>(x, a);
    for (int i = 0; i < kOut; ++i) columns[i][j] = a[i];
  }
  for (int i = 0; i < kOut; ++i) {
    Vector values[kOut];
    transform_axis<kTransform>(columns[i], values);
    for (int j = 0; j < kOut; ++j) store(out + (i * kOut + j) * value_size, values[j]);
  }
}

// Calls visit(c, count) for each vector of channels: count is kWidth but for the last one's, and
// further calls with 0 fill the last block.
template <typename Visit>
[[gnu::always_inline]] inline void over_vectors(int64_t channels, Visit visit) {
  int64_t c = 0;
  for (; c + kWidth <= channels; c += kWidth) visit(c, kWidth);
  for (; c < divide_up(channels, kBlock) * kBlock; c += kWidth) {
    visit(c, static_cast<int>(larger(channels - c, 0)));
  }
}

// Where column c of a row lies in a blocked operand of so many rows.
inline int64_t blocked(int64_t c, int64_t row, int64_t rows) {
  return (c / kBlock * rows + row) * kBlock + c % kBlock;
}

template <Transform kTransform, typename Read>
inline void load_winograd_tile(const Tiling& t, const Read& prologue, const Patch& patch,
                               int64_t row, float* values, Guard* guard) {
  const int64_t size = t.value_size();
  Guard sum = *guard;
  over_vectors(t.in_c, [&](int64_t c, int count) __attribute__((always_inline)) {
    float* out = values + blocked(c, row, t.rows);
    if (count < kWidth) {
      transform_vector<kTransform>(
          [&](int i) __attribute__((always_inline)) {
            return sum(masked(prologue.first(patch.at[i] + c, c, count), patch.inside[i]));
          },
          out, size);
    } else if (patch.whole) {
      transform_vector<kTransform>(
          [&](int i)
              __attribute__((always_inline)) { return sum(prologue.all(patch.at[i] + c, c)); },
          out, size);
    } else {
      transform_vector<kTransform>(
          [&](int i) __attribute__((always_inline)) {
            return sum(masked(prologue.all(patch.at[i] + c, c), patch.inside[i]));
          },
          out, size);
    }
  });
  *guard = sum;
}

// Copies one position of one tile; zeros outside the image.
template <typename Read>
inline void load_position(const Read& prologue, int64_t channels, int64_t at, bool inside,
                          int64_t row, int64_t rows, float* value, Guard* guard) {
  Guard sum = *guard;
  over_vectors(channels, [&](int64_t c, int count) __attribute__((always_inline)) {
    Vector v = {};
    if (inside) {
      v = count == kWidth ? prologue.all(at + c, c) : prologue.first(at + c, c, count);
    }
    store(value + blocked(c, row, rows), sum(v));
  });
  *guard = sum;
}

template <typename Read>
inline void load_copied_tile(const Tiling& t, const Axis& h, const Axis& w, const Read& prologue,
                             int64_t image, int64_t tile_h, int64_t tile_w, int64_t row,
                             float* values, Guard* guard) {
  for (int i = 0; i < h.patch; ++i) {
    const int64_t y = tile_h * h.in_step + h.in_at[i];
    for (int j = 0; j < w.patch; ++j) {
      const int64_t x = tile_w * w.in_step + w.in_at[j];
      const bool inside = y >= 0 && y < t.in_h && x >= 0 && x < t.in_w;
      const int64_t at = inside ? ((image * t.in_h + y) * t.in_w + x) * t.in_c : 0;
      load_position(prologue, t.in_c, at, inside, row, t.rows,
                    values + (i * w.patch + j) * t.value_size(), guard);
    }
  }
}

// Reads `count` neighbouring elements of an image as floats, four at a time where possible.
template <typename Read>
[[gnu::always_inline]] inline void copy_run(const Read& prologue, int64_t at, int64_t channels,
                                            int64_t count, float* out) {
  int64_t i = 0;
  if constexpr (Read::kPlain) {
    for (; i + 4 <= count; i += 4) {
      for (int j = 0; j < 4; ++j) out[i + j] = widen(prologue.x[at + i + j]);
    }
  }
  for (; i < count; ++i) out[i] = prologue.one(at + i, i % channels);
}

// Gathers all taps of a tile, [kernel_h][kernel_w][channels], into one row.
template <typename Read>
inline void load_im2col_tile(const Tiling& t, const Axis& h, const Axis& w, const Read& prologue,
                             int64_t image, int64_t tile_h, int64_t tile_w, int64_t row,
                             float* value, Guard* guard) {
  constexpr int64_t kMost = kMaxKernel * kMaxKernel * kFewChannels;
  float taps[kMost];
  const int64_t run = w.patch * t.in_c, count = divide_up(h.patch * run, kBlock) * kBlock;
  const int64_t top = tile_h * h.in_step + h.in_at[0], left = tile_w * w.in_step + w.in_at[0];
  const int64_t begin = larger(0, -left), end = smaller(w.patch, t.in_w - left);
  const bool whole = begin == 0 && end == w.patch && top >= 0 && top + h.patch <= t.in_h;
  const int64_t cleared = whole ? smaller(count, h.patch * run / kWidth * kWidth) : 0;
  for (int64_t i = cleared; i < count; i += kWidth) store(taps + i, Vector{});
  for (int64_t i = larger(0, -top); i < smaller(h.patch, t.in_h - top) && begin < end; ++i) {
    const int64_t at = ((image * t.in_h + top + i) * t.in_w + left + begin) * t.in_c;
    copy_run(prologue, at, t.in_c, (end - begin) * t.in_c, taps + i * run + begin * t.in_c);
  }
  Guard sum = *guard;
  for (int64_t i = 0; i < count; i += kWidth) {
    store(value + blocked(i, row, t.rows), sum(load(taps + i)));
  }
  *guard = sum;
}

// Iterates over the tiles of a pass.
struct Cursor {
  Cursor(const Axis& axis_h, const Axis& axis_w, int64_t tile)
      : h(axis_h),
        w(axis_w),
        tile_w(tile % axis_w.count),
        tile_h(tile / axis_w.count % axis_h.count),
        image(tile / axis_w.count / axis_h.count) {}

  int64_t at_h() const { return h.first + tile_h; }
  int64_t at_w() const { return w.first + tile_w; }
  void advance() {
    if (++tile_w < w.count) return;
    tile_w = 0;
    if (++tile_h < h.count) return;
    tile_h = 0;
    ++image;
  }

  const Axis &h, &w;
  int64_t tile_w, tile_h, image;
};

// Loads tiles [first, first + used) of a pass into the rows from 0 on.
template <typename T>
inline void load_block(const Tiling& t, const Axis& h, const Axis& w, const Prologue& prologue,
                       int64_t first, int64_t used, float* values, Guard* guard) {
  with_prologue<T>(prologue, [&](const auto& read) {
    Cursor at(h, w, first);
    const auto winograd = [&]<Transform kTransform>(int64_t row) {
      Patch patch;
      find_patch<kPositions<kTransform>>(t, h, w, at.image, at.at_h(), at.at_w(), &patch);
      load_winograd_tile<kTransform>(t, read, patch, row, values, guard);
    };
    for (int64_t row = 0; row < used; ++row, at.advance()) {
      switch (t.transform) {
        case Transform::up2:
          winograd.template operator()<Transform::up2>(row);
          break;
        case Transform::up3:
          winograd.template operator()<Transform::up3>(row);
          break;
        case Transform::down2:
          winograd.template operator()<Transform::down2>(row);
          break;
        case Transform::down3:
          winograd.template operator()<Transform::down3>(row);
          break;
        case Transform::copy:
          load_copied_tile(t, h, w, read, at.image, at.at_h(), at.at_w(), row, values, guard);
          break;
        case Transform::gathered:
          load_im2col_tile(t, h, w, read, at.image, at.at_h(), at.at_w(), row, values, guard);
          break;
      }
    }
  });
}

}  // namespace genimg::cpu::GENIMG_ISA
