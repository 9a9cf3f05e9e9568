#include "read_image.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/where.h>

namespace genimg {

using cpu::Prologue;

FusedInput FusedInput::plain(const at::Tensor& x) {
  FusedInput image;
  image.x = x;
  return image;
}

FusedInput FusedInput::affine_leaky(const at::Tensor& x, const Affine& affine,
                                    double negative_slope) {
  FusedInput image = plain(x);
  image.kind = Prologue::affine_leaky;
  image.affine = affine;
  image.negative_slope = negative_slope;
  return image;
}

FusedInput FusedInput::two_tensor(const at::Tensor& x, const at::Tensor& y, const Affine& affine,
                                  const at::Tensor& slope) {
  FusedInput image = plain(x);
  image.kind = Prologue::two_tensor;
  image.y = y;
  image.affine = affine;
  image.slope = slope;
  return image;
}

Prologue FusedInput::prologue() const {
  Prologue prologue = {};
  prologue.kind = kind;
  prologue.x = x.const_data_ptr();
  prologue.negative_slope = static_cast<float>(negative_slope);
  if (kind == Prologue::none) return prologue;
  prologue.mean = affine.mean.const_data_ptr<float>();
  prologue.scale = affine.scale.const_data_ptr<float>();
  prologue.shift = affine.shift.const_data_ptr<float>();
  if (kind == Prologue::affine_leaky) return prologue;
  prologue.y = y.const_data_ptr();
  prologue.slope = slope.const_data_ptr<float>();
  return prologue;
}

at::Tensor FusedInput::dense() const {
  if (kind == Prologue::none) return x;
  const auto of_channels = [&](const at::Tensor& padded) { return per_channel(padded, x.size(1)); };
  const at::Tensor mean = of_channels(affine.mean), scale = of_channels(affine.scale),
                   shift = of_channels(affine.shift), wide = x.to(at::kFloat);
  if (kind == Prologue::affine_leaky) {
    const at::Tensor z = (wide - mean) * scale + shift;
    return leaky(z, z, negative_slope).to(x.scalar_type());
  }
  const at::Tensor other = (y.to(at::kFloat) - mean) * of_channels(slope) + shift;
  return (wide * scale + other).to(x.scalar_type());
}

at::Tensor leaky(const at::Tensor& gate, const at::Tensor& value, double negative_slope) {
  if (negative_slope == 0) return value.masked_fill(gate <= 0, 0);
  return at::where(gate > 0, value, value * negative_slope);
}

at::Tensor per_channel(const at::Tensor& padded, int64_t channels) {
  return padded.narrow(0, 0, channels).view({1, channels, 1, 1});
}

}  // namespace genimg
