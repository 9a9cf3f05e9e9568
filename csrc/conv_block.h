// One block of conv_stack: its contractions with their prologues and epilogues, and what PyTorch
// does in their place where they refuse the numbers.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <vector>

#include "convolution.h"
#include "cpu/moments.h"
#include "cpu/read_image.h"

namespace genimg {

// float [channels] each.
struct Statistics {
  at::Tensor mean, rstd, unbiased_var;
};

// A raw output, or one with its activation where no norm stands between; with its statistics.
struct BlockOutput {
  at::Tensor image;
  Statistics statistics;
};

struct NormGrads {
  at::Tensor x, gamma, beta;
};

// dz = da * leaky'(z), with the sums of dz and of dz * (y - mean).
struct GatedGrad {
  at::Tensor dz;
  ChannelSums sums;
};

struct ConvBlock {
  enum Norm { none, batch, running };  // running: also in training
  enum Activation { identity, leaky, tanh, sigmoid };

  Convolution convolution() const;
  bool has_norm() const { return norm != none; }
  bool takes_statistics(bool training) const { return norm == batch && training; }
  // The slope below zero of what stands behind the norm; without an activation, 1.
  double gate_slope() const { return activation == leaky ? negative_slope : 1.0; }
  void set_formats(at::MemoryFormat input);
  // The format in which torch's layers hand on an output of these sizes.
  at::MemoryFormat passed_on(at::IntArrayRef sizes) const;
  Affine affine(const at::Tensor& mean, const at::Tensor& rstd) const;

  BlockOutput forward(const FusedInput& image, bool training) const;
  at::Tensor norm_and_activate(const at::Tensor& raw, const Statistics& statistics) const;

  NormGrads norm_backward(const at::Tensor& grad_y, const at::Tensor& y, const at::Tensor& raw,
                          const at::Tensor& mean, const at::Tensor& rstd, bool training) const;
  at::Tensor activation_backward(const at::Tensor& grad_y, const at::Tensor& y) const;
  // The gradient of the convolution's bias, which a norm that takes statistics cancels.
  at::Tensor bias_grad(const at::Tensor& grad_beta, const at::Tensor& scale, bool training) const;
  at::Tensor weight_backward(const FusedInput& image, const FusedInput& grad) const;
  at::Tensor input_backward(const FusedInput& grad, const at::Tensor& like) const;
  // The gradient of this block's input, through the gate of the block before it, which wrote y.
  GatedGrad gated_backward(const FusedInput& grad, const at::Tensor& y, const Affine& gate,
                           double slope) const;

  const char* op;
  bool transposed;
  std::array<int64_t, 2> stride, padding, output_padding;
  Norm norm;
  Activation activation;
  double eps, negative_slope;
  // torch's, of the input, and of the convolution's output and all gradients.
  at::MemoryFormat input_format, format;
  at::Tensor weight;
  std::optional<at::Tensor> bias, gamma, beta, running_mean, running_var;

 private:
  Statistics statistics(const Moments& moments, const at::Tensor* refused) const;
  at::Tensor activate(const at::Tensor& z) const;
  // PyTorch's gradients of input and weight, from the formats that it would have: which of its
  // kernels runs, and with that where NaN and Inf spread to, hangs on them.
  std::tuple<at::Tensor, at::Tensor> unfused_backward(const FusedInput& grad,
                                                      const at::Tensor& image, bool needs_x,
                                                      bool needs_weight) const;
};

// Six parameters a block: weight, bias, gamma, beta, running mean, running variance. Nine options:
// transposed, stride, padding and output padding, norm, activation. Two numbers: eps and slope.
std::vector<ConvBlock> read_blocks(const char* op,
                                   const c10::List<std::optional<at::Tensor>>& parameters,
                                   at::IntArrayRef options, at::ArrayRef<double> numbers);

// z = x.
Affine identity(int64_t channels);
// z = scale * x.
Affine scaled(const at::Tensor& scale);

NormGrads norm_grads(const ChannelSums& sums, const at::Tensor& rstd);

// The gradient of a norm's input, where its statistics were the batch's.
FusedInput through_statistics(const GatedGrad& gated, const at::Tensor& y, const Affine& gate,
                              const at::Tensor& rstd);

}  // namespace genimg
