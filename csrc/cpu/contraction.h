// Runs the contractions of kernels/cpu/conv*.h over torch's threads.
#pragma once

#include <ATen/core/Tensor.h>

#include "../../kernels/cpu/conv/geometry.h"

namespace genimg {

// The geometry of a convolution whose weight is [small_c, large_c, kernel_h, kernel_w].
cpu::ConvGeometry conv_geometry(const at::Tensor& small, const at::Tensor& large,
                                const at::Tensor& weight, at::IntArrayRef stride,
                                at::IntArrayRef padding);

// dgrad or fprop: false where the numbers were refused (see ConvCall), and the output is to be
// thrown away. `weight`, in any memory format, is float or bfloat16 as the images are. `pieces` is
// what the epilogue's moments have room for.
bool contract(const cpu::ConvGeometry& geometry, cpu::ConvDirection direction,
              const at::Tensor& weight, const cpu::Prologue& prologue,
              const cpu::Epilogue& epilogue);

// Pieces of the moments that such a contraction takes.
int64_t moment_pieces(const cpu::ConvGeometry& geometry, cpu::ConvDirection direction);

// The weight's gradient, in the weight's own dtype: false as above. `grad_weight` is
// [small_c, large_c, kernel_h, kernel_w], dense in either memory format.
bool contract_weight(const cpu::ConvGeometry& geometry, const cpu::Prologue& small,
                     const cpu::Prologue& large, at::Tensor& grad_weight);

}  // namespace genimg
