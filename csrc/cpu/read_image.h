// An image and how a contraction reads it: the tensors behind a cpu::Prologue.
#pragma once

#include <ATen/core/Tensor.h>

#include "../../kernels/cpu/conv/geometry.h"

namespace genimg {

// Per channel: z = (x - mean) * scale + shift. Floats, with room for whole blocks of channels.
struct Affine {
  at::Tensor mean, scale, shift;
};

struct FusedInput {
  // x as it is.
  static FusedInput plain(const at::Tensor& x);
  // leaky(z).
  static FusedInput affine_leaky(const at::Tensor& x, const Affine& affine, double negative_slope);
  // x * scale + (y - mean) * slope + shift.
  static FusedInput two_tensor(const at::Tensor& x, const at::Tensor& y, const Affine& affine,
                               const at::Tensor& slope);

  cpu::Prologue prologue() const;
  // The image after its prologue, as one tensor for PyTorch's ops.
  at::Tensor dense() const;

  cpu::Prologue::Kind kind = cpu::Prologue::none;
  at::Tensor x, y;  // dense NHWC
  Affine affine;
  at::Tensor slope;
  double negative_slope = 1;
};

// As kernels/cpu/leaky.h: a slope of 0 masks.
at::Tensor leaky(const at::Tensor& gate, const at::Tensor& value, double negative_slope);

// The first values of a padded parameter, to be broadcast over an image of so many channels.
at::Tensor per_channel(const at::Tensor& padded, int64_t channels);

}  // namespace genimg
