#include "batch_norm_act.h"

#include "storage.h"

namespace genimg::cpu::GENIMG_ISA {
namespace {

constexpr int kLanes = 16;

// Sums of a plane: so many lanes side by side, then one after the other, in an order that depends
// on nothing but n.
struct Lanes {
  double values[kLanes] = {};

  double total() const {
    double sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += values[lane];
    return sum;
  }
};

inline bool is_finite(float value) { return value - value == 0; }

// The moments of n values about a shift that lies among them: their sums do not cancel, however far
// the mean is from 0.
inline void moments_about(float shift, double sum, double square_sum, double n, double* mean,
                          double* m2) {
  *mean = shift + sum / n;
  const double spread = square_sum - sum * (sum / n);
  // Rounding may go below 0; a NaN stays.
  *m2 = spread < 0 ? 0 : spread;
}

inline float affine(float x, float mean, float scale, float shift) {
  return (x - mean) * scale + shift;
}

inline float leaky(float gate, float value, float negative_slope) {
  const float scaled = value * negative_slope;  // outside the branch, so that loops vectorise
  return gate > 0 ? value : scaled;
}

// Slope 0 is ReLU, which sends -Inf to 0, not to NaN.
inline float activate(float z, float negative_slope) {
  const float scaled = negative_slope == 0 && z < 0 ? 0.0f : z * negative_slope;
  return z > 0 ? z : scaled;
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
    for (int64_t i = 0; i < n; ++i) {
      const float z = affine(S::load(x + i), op.mean, op.scale, op.shift);
      S::store(y + i, activate(z, op.negative_slope));
    }
  }

  static void sums(const T* __restrict grad_y, const T* __restrict x, int64_t n, BatchNormAct op,
                   double* sum_dz, double* sum_dz_x) {
    Lanes dz_sums, dz_x_sums;
    const auto add = [&](int64_t i, int lane) __attribute__((always_inline)) {
      const float centred = S::load(x + i) - op.mean;
      const float z = centred * op.scale + op.shift;
      const float dz = leaky(z, S::load(grad_y + i), op.negative_slope);
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
    for (int64_t i = 0; i < n; ++i) {
      const float centred = S::load(x + i) - f.mean;
      const float dz = leaky(centred * f.scale + f.shift, S::load(grad_y + i), f.negative_slope);
      S::store(grad_x + i, f.scale * dz + centred * op.slope + op.offset);
    }
  }
};

// Channels a block at a time, so that its sums stay in registers while the rows go by.
constexpr int kChannels = 16;

struct FullBlock {
  constexpr operator int() const { return kChannels; }
};

template <typename Block>
inline void over_channels(int64_t channels, Block block) {
  int64_t c = 0;
  for (; c + kChannels <= channels; c += kChannels) block(c, FullBlock{});
  if (c < channels) block(c, static_cast<int>(channels - c));
}

template <typename S>
struct Pixels {
  using T = typename S::Storage;

  static void moments(const T* __restrict x, int64_t rows, int64_t channels, int64_t stride,
                      double* __restrict mean, double* __restrict m2) {
    const auto block = [=](int64_t first, auto width) __attribute__((always_inline)) {
      float shift[kChannels];
      double sums[kChannels] = {}, squares[kChannels] = {};
      for (int c = 0; c < width; ++c) {
        const float value = S::load(x + first + c);
        shift[c] = is_finite(value) ? value : 0;
      }
      for (int64_t row = 0; row < rows; ++row) {
        const T* p = x + row * stride + first;
        for (int c = 0; c < width; ++c) {
          const double d = static_cast<double>(S::load(p + c)) - shift[c];
          sums[c] += d;
          squares[c] += d * d;
        }
      }
      for (int c = 0; c < width; ++c) {
        moments_about(shift[c], sums[c], squares[c], static_cast<double>(rows), mean + first + c,
                      m2 + first + c);
      }
    };
    over_channels(channels, block);
  }

  static void fwd(const T* __restrict x, T* __restrict y, int64_t rows, int64_t channels,
                  int64_t stride, BatchNormActs op) {
    for (int64_t row = 0; row < rows; ++row) {
      const T* from = x + row * stride;
      T* to = y + row * channels;
      for (int64_t c = 0; c < channels; ++c) {
        const float z = affine(S::load(from + c), op.mean[c], op.scale[c], op.shift[c]);
        S::store(to + c, activate(z, op.negative_slope));
      }
    }
  }

  static void sums(const T* __restrict grad_y, const T* __restrict x, int64_t rows,
                   int64_t channels, int64_t stride, BatchNormActs op, double* __restrict sum_dz,
                   double* __restrict sum_dz_x) {
    const auto block = [=](int64_t first, auto width) __attribute__((always_inline)) {
      double dz_sums[kChannels] = {}, dz_x_sums[kChannels] = {};
      for (int64_t row = 0; row < rows; ++row) {
        const T* p = x + row * stride + first;
        const T* g = grad_y + row * channels + first;
        for (int c = 0; c < width; ++c) {
          const float centred = S::load(p + c) - op.mean[first + c];
          const float z = centred * op.scale[first + c] + op.shift[first + c];
          const float dz = leaky(z, S::load(g + c), op.negative_slope);
          dz_sums[c] += dz;
          dz_x_sums[c] += static_cast<double>(dz) * centred;
        }
      }
      for (int c = 0; c < width; ++c) {
        sum_dz[first + c] = dz_sums[c];
        sum_dz_x[first + c] = dz_x_sums[c];
      }
    };
    over_channels(channels, block);
  }

  static void bwd(const T* __restrict grad_y, const T* __restrict x, T* __restrict grad_x,
                  int64_t rows, int64_t channels, int64_t stride, BatchNormActGrads op) {
    const BatchNormActs f = op.forward;
    for (int64_t row = 0; row < rows; ++row) {
      const T* p = x + row * stride;
      const T* g = grad_y + row * channels;
      T* to = grad_x + row * channels;
      for (int64_t c = 0; c < channels; ++c) {
        const float centred = S::load(p + c) - f.mean[c];
        const float z = centred * f.scale[c] + f.shift[c];
        const float dz = leaky(z, S::load(g + c), f.negative_slope);
        S::store(to + c, f.scale[c] * dz + centred * op.slope[c] + op.offset[c]);
      }
    }
  }
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
