// Statistics of an image that a contraction takes while it writes it.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "../../kernels/cpu/conv/geometry.h"

namespace genimg {

// Room for the pieces of an epilogue's moments, and their sum in a fixed order.
struct Moments {
  Moments(int64_t pieces, int64_t channels);

  void attach(cpu::Epilogue* epilogue);

  int64_t pieces, channels;
  std::vector<double> counts, first, second;
};

// Per channel, in double: [channels] each.
struct ChannelSums {
  at::Tensor first, second;
};

// The moments of a plain epilogue: mean, and sum of squares about it.
ChannelSums mean_and_squares(const Moments& moments);
ChannelSums mean_and_squares(const at::Tensor& image);

// The moments of a gate: sums of out, and of out * (y - mean).
ChannelSums gate_sums(const Moments& moments);

}  // namespace genimg
