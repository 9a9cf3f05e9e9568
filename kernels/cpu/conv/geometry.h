// Convolutions between a small and a large image. Formulas: genimg/ops/conv2d.py and
// genimg/ops/conv_transpose2d.py; the algorithms: docs/numerics.md.
//
// Pixel i of the small image and pixel stride * i - pad + k of the large one meet in tap k of the
// weight [small_c, large_c, kernel_h, kernel_w]. dgrad goes from small to large (a transposed
// convolution's forward), fprop from large to small, wgrad computes the weight's gradient from
// both. Images are dense NHWC. T is float, or uint16_t for bfloat16 bit patterns; weights,
// parameters and sums inside are float.
#pragma once

#include <cstdint>

#include "../isa.h"

namespace genimg::cpu {

struct ConvGeometry {
  int64_t batch, small_h, small_w, small_c, large_h, large_w, large_c;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};

// The largest number of taps along one axis.
constexpr int64_t kMaxKernel = 16;

enum class ConvAlgorithm {
  winograd_f2x2,  // F(2,2) on the phases: kernel 4, stride 2, padding 1
  winograd_f3x2,  // F(3,2) on them
  direct,         // every tap by itself
  few,            // few channels on the large side: all taps' channels side by side
  col2im,         // dgrad of few pixels, by the weight as it is: nothing is packed
};

// Channels that the kernels process at a time.
constexpr int64_t kChannelBlock = 16;

inline bool is_winograd(ConvAlgorithm form) { return form <= ConvAlgorithm::winograd_f3x2; }

enum class ConvDirection { dgrad, fprop };

// The order of the weight in memory: [small_c, large_c, taps], or, for dgrad and whole blocks of
// large_c, [small_c, taps, large_c], which is channels_last.
enum class WeightOrder { taps_last, channels_last };

// How an input is read. Arrays are per channel, with room for whole blocks of 16.
struct Prologue {
  enum Kind {
    none,          // x
    affine_leaky,  // leaky((x - mean) * scale + shift)
    two_tensor,    // x * scale + (y - mean) * slope + shift
  } kind;
  const void *x, *y;
  const float *mean, *scale, *shift, *slope;
  float negative_slope;
};

// How a result is written. Arrays as above.
struct Epilogue {
  enum Kind {
    plain,  // out = activation(value + bias)
    gate,   // out = value * leaky'((y - mean) * scale + shift), and its sums
  } kind;
  enum Activation { identity, leaky, tanh, sigmoid } activation;
  void* out;
  const float* bias;  // or null
  float negative_slope;
  // gate:
  const void* y;
  const float *mean, *scale, *shift;
  // Moments of what is stored, an entry or a row of channels for each piece; or null. plain: count,
  // mean, sum of squares about it. gate: sum of out, and of out * (y - mean).
  double *counts, *first, *second;
};

struct ConvPlan {
  ConvAlgorithm form;
  int64_t packed;   // floats of the packed weight
  int64_t packing;  // items that packing it falls into
  int64_t units;    // pieces of work
  int64_t pieces;   // pieces of the moments
  int64_t scratch;  // floats that a thread needs
};

struct ConvCall {
  ConvGeometry geometry;
  ConvAlgorithm form;
  Prologue prologue;
  Epilogue epilogue;
  const float* packed;
  const void* weight;  // as it is
  WeightOrder order;
  // Set where an input is not finite or above 2^63. Winograd's sums of neighbours would spread it
  // to outputs that do not depend on it; the caller discards the result.
  int* refused;
};

}  // namespace genimg::cpu
