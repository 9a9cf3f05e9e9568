// The last step of a channel's sums: statistics of a batch norm, or gradients of its parameters.
#pragma once

#include "../simt/simt.h"
#include "geometry.h"

namespace genimg::cuda {

// Computes the statistics from the mean and the sum of squares about it.
__device__ __forceinline__ void finish_statistics(const ConvStatistics& to, int64_t c, float count,
                                                  float mean, float squares) {
  const float rstd = 1 / sqrtf(squares / count + to.eps);
  to.mean[c] = mean;
  to.rstd[c] = rstd;
  to.var[c] = squares / (count - 1);
  if (to.scale == nullptr) return;
  to.scale[c] = to.gamma == nullptr ? rstd : to.gamma[c] * rstd;
  to.shift[c] = to.beta == nullptr ? 0 : to.beta[c];
}

// Computes the gradients from the sum of dz and that of dz * (y - mean).
__device__ __forceinline__ void finish_grads(const ConvNormGrads& to, int64_t c, float count,
                                             float sum, float weighted) {
  if (to.norm == NormMode::kNone) {
    if (to.bias != nullptr) to.bias[c] = sum;
    return;
  }
  const bool batch = to.norm == NormMode::kBatch;
  const float rstd = to.rstd[c], scale = to.scale[c];
  // Subtracting the batch's mean cancels the bias.
  if (to.bias != nullptr) to.bias[c] = batch ? 0 : scale * sum;
  if (to.gamma != nullptr) to.gamma[c] = weighted * rstd;
  if (to.beta != nullptr) to.beta[c] = sum;
  if (!batch) return;
  const float share = -scale / count;
  to.slope[c] = share * rstd * rstd * weighted;
  to.shift[c] = share * sum;
}

}  // namespace genimg::cuda
