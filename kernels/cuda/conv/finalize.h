// What is made of a channel's sums, once all of them are there.
#pragma once

#include "../simt/simt.h"
#include "geometry.h"

namespace genimg::cuda {

// From the mean, and the sum of squares about it.
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

// From the sum of dz, and that of dz * (y - mean).
__device__ __forceinline__ void finish_grads(const ConvNormGrads& to, int64_t c, float count,
                                             float sum, float weighted) {
  if (to.norm == NormKind::kNone) {
    if (to.bias != nullptr) to.bias[c] = sum;
    return;
  }
  const bool batch = to.norm == NormKind::kBatch;
  const float rstd = to.rstd[c], scale = to.scale[c];
  // A batch's mean takes the bias away.
  if (to.bias != nullptr) to.bias[c] = batch ? 0 : scale * sum;
  if (to.gamma != nullptr) to.gamma[c] = weighted * rstd;
  if (to.beta != nullptr) to.beta[c] = sum;
  if (!batch) return;
  const float share = -scale / count;
  to.slope[c] = share * rstd * rstd * weighted;
  to.shift[c] = share * sum;
}

}  // namespace genimg::cuda
