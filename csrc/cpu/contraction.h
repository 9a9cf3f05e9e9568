// Runs the contractions of kernels/cpu/conv/*.h over torch's threads.
#pragma once

#include <ATen/core/Tensor.h>

#include "../../kernels/cpu/conv/geometry.h"

namespace genimg {

// The geometry of a convolution whose weight is [small_c, large_c, kernel_h, kernel_w].
cpu::ConvGeometry conv_geometry(const at::Tensor& small, const at::Tensor& large,
                                const at::Tensor& weight, at::IntArrayRef stride,
                                at::IntArrayRef padding);

// Computes dgrad or fprop. Returns false where the values were refused (see ConvCall); the output
// is then invalid. `weight`, in any memory format, has the dtype of the images, float or bfloat16.
// The epilogue's moments have room for moment_pieces() pieces.
bool contract(const cpu::ConvGeometry& geometry, cpu::ConvDirection direction,
              const at::Tensor& weight, const cpu::Prologue& prologue,
              const cpu::Epilogue& epilogue);

// The number of pieces of moments that such a contraction writes.
int64_t moment_pieces(const cpu::ConvGeometry& geometry, cpu::ConvDirection direction);

// Computes the weight's gradient, in the weight's own dtype. Returns false as above. `grad_weight`
// is [small_c, large_c, kernel_h, kernel_w], dense in either memory format.
bool contract_weight(const cpu::ConvGeometry& geometry, const cpu::Prologue& small,
                     const cpu::Prologue& large, at::Tensor& grad_weight);

}  // namespace genimg
