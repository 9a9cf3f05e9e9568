// Convolutions between a small and a large image on tensor cores, as matrix products whose operands
// are gathered while they are loaded. Formulas: genimg/ops/conv2d.py and
// genimg/ops/conv_transpose2d.py.
//
// Pixel i of the small image and pixel stride * i - pad + k of the large one meet in tap k. fprop
// goes from large to small, dgrad from small to large (a transposed convolution's forward), wgrad
// computes the weight's gradient from both. Images are dense NHWC, the weight is
// [small_c, kernel_h, kernel_w, large_c]: a channels_last tensor, which all three read as it is.
// T is float, __half or __nv_bfloat16; sums are float.
#pragma once

#include <cstdint>

#include "../simt/types.h"

namespace genimg::cuda {

struct ConvGeometry {
  int64_t batch;
  int small_c, small_h, small_w, large_c, large_h, large_w;
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};

enum class Activation { kNone, kLeakyRelu, kTanh, kSigmoid };

// The statistics that a norm uses: those of the batch, or the running ones.
enum class NormMode { kNone, kBatch, kRunning };

// A batch norm z = (y - mean) * scale + shift; each array has one float per channel.
struct ConvNorm {
  const float *mean = nullptr, *scale = nullptr, *shift = nullptr;
};

// Outputs that are computed from the statistics of a result: mean, rstd = 1 / sqrt(variance + eps),
// the unbiased variance, and gamma * rstd and beta, where null stands for 1 and 0.
struct ConvStatistics {
  float eps = 0;
  const float *gamma = nullptr, *beta = nullptr;
  float *mean = nullptr, *rstd = nullptr, *var = nullptr, *scale = nullptr, *shift = nullptr;
};

// Outputs that are computed from the sums of a gate, S1 of dz and S2 of dz * (y - mean); null for
// those that are not needed. `slope` and `shift` carry the gradient through the statistics of a
// batch: dy = dz * scale + (y - mean) * slope + shift.
struct ConvNormGrads {
  NormMode norm = NormMode::kNone;
  const float *rstd = nullptr, *scale = nullptr;
  float *bias = nullptr, *gamma = nullptr, *beta = nullptr, *slope = nullptr, *shift = nullptr;
};

// Sums of the stored values of each channel of a result.
struct ConvSums {
  float* scratch = nullptr;        // null for no sums
  unsigned* tickets = nullptr;     // 0 before and after
  ConvStatistics statistics = {};  // without a gate
  ConvNormGrads grads = {};        // with one
};

// Sizes of the workspace that the sums of a launcher need.
struct ConvSumsWorkspace {
  int64_t floats, tickets;
};

// out = activation(value + bias) * (z > 0 ? 1 : gate_slope), z = (y - mean) * scale + shift, where
// y is laid out as the result is; without a mean z = y. bias has one float per channel, or is null;
// without gate_y there is no gate.
struct ConvEpilogue {
  const float* bias = nullptr;
  Activation activation = Activation::kNone;
  float negative_slope = 0;
  const void* gate_y = nullptr;
  ConvNorm gate;
  float gate_slope = 0;
  ConvSums sums = {};
};

inline bool is_plain(const ConvEpilogue& epilogue) {
  return epilogue.gate_y == nullptr && epilogue.sums.scratch == nullptr;
}

// How an operand is read. Arrays have one float per channel.
struct ConvPrologue {
  enum Kind {
    kNone,         // x
    kAffineLeaky,  // leaky((x - mean) * scale + shift)
    kTwoTensor,    // x * scale + (y - mean) * slope + shift, where y is laid out as x is
    kScaled,       // x * scale
  } kind = kNone;
  const void* y = nullptr;
  const float *mean = nullptr, *scale = nullptr, *shift = nullptr, *slope = nullptr;
  float negative_slope = 0;
};

// Rows and columns of the product that a block computes. kHalo is the kernel for Hopper of fprop or
// dgrad where it supports the geometry, and kAuto elsewhere.
enum class ConvTile { kAuto, k64x16, k64x64, k128x64, k128x128, kHalo };

// How float is multiplied; sums are always float.
enum class ConvPrecision { kFloat, kTf32 };

}  // namespace genimg::cuda
