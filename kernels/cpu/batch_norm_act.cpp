#include "batch_norm_act.h"

#include "leaky.h"

namespace genimg::cpu::GENIMG_ISA {
namespace {

constexpr int kLanes = 16;

// Sums of a plane: kLanes partial sums side by side, then their sum, in an order that depends on n
// alone.
struct Lanes {
  double values[kLanes] = {};

  double total() const {
    double sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += values[lane];
    return sum;
  }
};

inline bool is_finite(float value) { return value - value == 0; }

// The moments of n values about a shift, which is one of the values: the sums do not cancel,
// however far the mean is from 0.
inline void moments_about(float shift, double sum, double square_sum, double n, double* mean,
                          double* m2) {
  *mean = shift + sum / n;
  const double spread = square_sum - sum * (sum / n);
  // Rounding may give a negative number; NaN is kept.
  *m2 = spread < 0 ? 0 : spread;
}

inline float affine(float x, float mean, float scale, float shift) {
  return (x - mean) * scale + shift;
}

template <typename S>
struct Plane {
  using T = typename S::Storage;

  static void moments(const T* __restrict x, int64_t n, double* mean, double* m2) {
    const float first = S::load(x);
    const float shift = is_finite(first) ? first : 0;
    Lanes sums, squares;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const double d = static_cast<double>(S::load(x + i + lane)) - shift;
        sums.values[lane] += d;
        squares.values[lane] += d * d;
      }
    }
    for (int lane = 0; i < n; ++i, ++lane) {
      const double d = static_cast<double>(S::load(x + i)) - shift;
      sums.values[lane] += d;
      squares.values[lane] += d * d;
    }
    moments_about(shift, sums.total(), squares.total(), static_cast<double>(n), mean, m2);
  }

  static void fwd(const T* __restrict x, T* __restrict y, int64_t n, BatchNormAct op) {
    const Leaky leaky(op.negative_slope);
    for (int64_t i = 0; i < n; ++i) {
      const float z = affine(S::load(x + i), op.mean, op.scale, op.shift);
      S::store(y + i, leaky(z, z));
    }
  }

  static void sums(const T* __restrict grad_y, const T* __restrict x, int64_t n, BatchNormAct op,
                   double* sum_dz, double* sum_dz_x) {
    const Leaky leaky(op.negative_slope);
    Lanes dz_sums, dz_x_sums;
    const auto add = [&](int64_t i, int lane) __attribute__((always_inline)) {
      const float centred = S::load(x + i) - op.mean;
      const float z = centred * op.scale + op.shift;
      const float dz = leaky(z, S::load(grad_y + i));
      dz_sums.values[lane] += dz;
      dz_x_sums.values[lane] += static_cast<double>(dz) * centred;
    };
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
    }
    for (int lane = 0; i < n; ++i, ++lane) add(i, lane);
    *sum_dz = dz_sums.total();
    *sum_dz_x = dz_x_sums.total();
  }

  static void bwd(const T* __restrict grad_y, const T* __restrict x, T* __restrict grad_x,
                  int64_t n, BatchNormActGrad op) {
    const BatchNormAct f = op.forward;
    const Leaky leaky(f.negative_slope);
    for (int64_t i = 0; i < n; ++i) {
      const float centred = S::load(x + i) - f.mean;
      const float dz = leaky(centred * f.scale + f.shift, S::load(grad_y + i));
      const float through = op.batch ? centred * op.slope + op.offset : 0.0f;
      S::store(grad_x + i, f.scale * dz + through);
    }
  }
};

// A vector of channels: all of it, or the `count` channels that exist.
struct Whole {
  template <typename T>
  Vector read(const T* p) const {
    return load(p);
  }
  template <typename T>
  void write(T* p, Vector v) const {
    store(p, v);
  }
  static constexpr int count = kWidth;
};

struct Part {
  template <typename T>
  Vector read(const T* p) const {
    return load_first(p, count);
  }
  template <typename T>
  void write(T* p, Vector v) const {
    store_first(p, v, count);
  }
  int count;
};

template <typename Visit>
[[gnu::always_inline]] inline void over_channels(int64_t channels, Visit visit) {
  int64_t c = 0;
  for (; c + kWidth <= channels; c += kWidth) visit(c, Whole{});
  if (c < channels) visit(c, Part{static_cast<int>(channels - c)});
}

// Rows that are summed at once in float before their sums are added to double ones; each row is a
// stream of memory of its own.
constexpr int64_t kRun = 8;

[[gnu::always_inline]] inline void add_floats(Vector v, int count, double* to) {
  if (count == kWidth) {
    typedef double Doubles __attribute__((vector_size(kWidth * 8)));
    Doubles sums;
    __builtin_memcpy(&sums, to, sizeof sums);
    sums += __builtin_convertvector(v, Doubles);
    __builtin_memcpy(to, &sums, sizeof sums);
    return;
  }
  float values[kWidth];
  store(values, v);
  for (int i = 0; i < count; ++i) to[i] += values[i];
}

// Adds terms(row, &first, &second) over rows to first[channels] and second[channels].
template <typename Terms>
[[gnu::always_inline]] inline void sum_rows(int64_t rows, int64_t channels,
                                            double* __restrict first, double* __restrict second,
                                            Terms terms) {
  for (int64_t row = 0; row < rows; row += kRun) {
    const int64_t end = smaller(row + kRun, rows);
    over_channels(channels, [&](int64_t c, auto part) __attribute__((always_inline)) {
      Vector sums = {}, others = {};
      const auto term = terms(c, part);
      for (int64_t r = row; r < end; ++r) term(r, &sums, &others);
      add_floats(sums, part.count, first + c);
      add_floats(others, part.count, second + c);
    });
  }
}

template <typename S>
struct Pixels {
  using T = typename S::Storage;

  static void moments(const T* __restrict x, int64_t rows, int64_t channels, int64_t stride,
                      double* __restrict mean, double* __restrict m2) {
    for (int64_t c = 0; c < channels; ++c) mean[c] = m2[c] = 0;
    sum_rows(rows, channels, mean, m2, [=](int64_t c, auto part) __attribute__((always_inline)) {
      const Vector shift = shift_of(part.read(x + c));
      return [=](int64_t row, Vector* sums, Vector* squares) __attribute__((always_inline)) {
        const Vector d = part.read(x + row * stride + c) - shift;
        *sums += d;
        *squares += d * d;
      };
    });
    over_channels(channels, [=](int64_t first, auto part) __attribute__((always_inline)) {
      float shift[kWidth];
      store(shift, shift_of(part.read(x + first)));
      for (int i = 0; i < part.count; ++i) {
        const int64_t c = first + i;
        moments_about(shift[i], mean[c], m2[c], static_cast<double>(rows), mean + c, m2 + c);
      }
    });
  }

  static void fwd(const T* __restrict x, T* __restrict y, int64_t rows, int64_t channels,
                  int64_t stride, BatchNormActs op) {
    const Leaky leaky(op.negative_slope);
    for (int64_t row = 0; row < rows; ++row) {
      over_channels(channels, [=](int64_t c, auto part) __attribute__((always_inline)) {
        const Vector z =
            (part.read(x + row * stride + c) - part.read(op.mean + c)) * part.read(op.scale + c) +
            part.read(op.shift + c);
        part.write(y + row * channels + c, leaky(z, z));
      });
    }
  }

  static void sums(const T* __restrict grad_y, const T* __restrict x, int64_t rows,
                   int64_t channels, int64_t stride, BatchNormActs op, double* __restrict sum_dz,
                   double* __restrict sum_dz_x) {
    for (int64_t c = 0; c < channels; ++c) sum_dz[c] = sum_dz_x[c] = 0;
    const Leaky leaky(op.negative_slope);
    sum_rows(rows, channels, sum_dz, sum_dz_x,
             [=](int64_t c, auto part) __attribute__((always_inline)) {
               const Vector mean = part.read(op.mean + c), scale = part.read(op.scale + c),
                            shift = part.read(op.shift + c);
               return [=](int64_t row, Vector* dz_sums, Vector* dz_x_sums)
                          __attribute__((always_inline)) {
                            const Vector centred = part.read(x + row * stride + c) - mean;
                            const Vector grad = part.read(grad_y + row * channels + c);
                            const Vector dz = leaky(centred * scale + shift, grad);
                            *dz_sums += dz;
                            *dz_x_sums += dz * centred;
                          };
             });
  }

  static void bwd(const T* __restrict grad_y, const T* __restrict x, T* __restrict grad_x,
                  int64_t rows, int64_t channels, int64_t stride, BatchNormActGrads op) {
    const BatchNormActs f = op.forward;
    const Leaky leaky(f.negative_slope);
    for (int64_t row = 0; row < rows; ++row) {
      over_channels(channels, [=](int64_t c, auto part) __attribute__((always_inline)) {
        const Vector scale = part.read(f.scale + c);
        const Vector centred = part.read(x + row * stride + c) - part.read(f.mean + c);
        const Vector grad = part.read(grad_y + row * channels + c);
        const Vector dz = leaky(centred * scale + part.read(f.shift + c), grad);
        Vector grad_of_x = scale * dz;
        if (op.batch) grad_of_x += centred * part.read(op.slope + c) + part.read(op.offset + c);
        part.write(grad_x + row * channels + c, grad_of_x);
      });
    }
  }

 private:
  // The first row, where it is finite.
  static Vector shift_of(Vector first) { return first - first == Vector{} ? first : Vector{}; }
};

template <typename S>
void fill(BatchNormActKernels<typename S::Storage>* kernels) {
  *kernels = {Plane<S>::moments,  Plane<S>::fwd,  Plane<S>::sums,  Plane<S>::bwd,
              Pixels<S>::moments, Pixels<S>::fwd, Pixels<S>::sums, Pixels<S>::bwd};
}

}  // namespace

void batch_norm_act_f32(BatchNormActKernels<float>* kernels) { fill<F32>(kernels); }

void batch_norm_act_bf16(BatchNormActKernels<uint16_t>* kernels) { fill<BF16>(kernels); }

}  // namespace genimg::cpu::GENIMG_ISA
