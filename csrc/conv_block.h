// One block of conv_stack: its contractions with their prologues and epilogues, and PyTorch's ops
// in their place where they refuse the values.
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

// The enumerations of genimg/conv_blocks.py, in its order: a member's value is its code there.
enum class Direction { down, up };
enum class NormMode { none, batch, running };
enum class Activation { none, leaky_relu, tanh, sigmoid };

// BlockParameters of genimg/conv_blocks.py.
struct BlockParameters {
  at::Tensor weight;  // [out, in, kernel_h, kernel_w], of an up block [in, out, kernel_h, kernel_w]
  std::optional<at::Tensor> bias;          // [out]
  std::optional<at::Tensor> gamma;         // [out]
  std::optional<at::Tensor> beta;          // [out]
  std::optional<at::Tensor> running_mean;  // [out]
  std::optional<at::Tensor> running_var;   // [out]
};

// BlockOptions of genimg/conv_blocks.py.
struct BlockOptions {
  Direction direction;                    // one integer
  std::array<int64_t, 2> stride;          // two integers: height, width
  std::array<int64_t, 2> padding;         // two integers
  std::array<int64_t, 2> output_padding;  // two integers
  NormMode norm;                          // one integer
  Activation activation;                  // one integer
  double eps;                             // one number
  double negative_slope;                  // one number
};

// The bit of a block's entry of `needs` that asks for the gradient of its weight; any other bit
// asks for those of its other parameters.
constexpr int64_t kNeedsWeight = 1;

// The statistics of a norm, float [channels] each. unbiased_var is defined for those of a batch.
struct Statistics {
  at::Tensor mean, rstd, var, unbiased_var;
};

// The raw output of a block with a norm and the norm's statistics; or the output of its activation.
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

struct ConvBlock : BlockParameters, BlockOptions {
  Convolution convolution() const;
  bool transposed() const { return direction == Direction::up; }
  bool has_norm() const { return norm != NormMode::none; }
  bool takes_statistics(bool training) const { return norm == NormMode::batch && training; }
  // The slope below zero of the activation behind the norm; 1 unless that is a LeakyReLU.
  double gate_slope() const { return activation == Activation::leaky_relu ? negative_slope : 1.0; }
  // Whether the activation is one that no slope describes.
  bool is_curved() const {
    return activation == Activation::tanh || activation == Activation::sigmoid;
  }
  void set_formats(at::MemoryFormat input);
  // The format in which torch's layers pass on an output of these sizes.
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
  // torch's formats, of the input, and of the convolution's output and all gradients.
  at::MemoryFormat input_format, format;

 private:
  Statistics statistics(const Moments& moments, const at::Tensor* refused) const;
  at::Tensor activate(const at::Tensor& z) const;
  // PyTorch's gradients of input and weight, computed from the formats that it would have: they
  // decide which of its kernels runs, and thereby where NaN and Inf spread to.
  std::tuple<at::Tensor, at::Tensor> unfused_backward(const FusedInput& grad,
                                                      const at::Tensor& image, bool needs_x,
                                                      bool needs_weight) const;
};

// Parses the arguments that PackedBlocks.pack of genimg/conv_blocks.py makes: for each block the
// fields of BlockParameters, and the integers (`options`) and numbers of BlockOptions, in order.
std::vector<ConvBlock> read_blocks(const char* op,
                                   const c10::List<std::optional<at::Tensor>>& parameters,
                                   at::IntArrayRef options, at::ArrayRef<double> numbers);

using Tensors = std::vector<at::Tensor>;

// Results of a forward that its backward needs, one tensor per block; undefined where it has none.
struct Kept {
  explicit Kept(size_t blocks) : raws(blocks), means(blocks), rstds(blocks), variances(blocks) {}

  Tensors raws;       // [N, C, H, W]: what the next block reads, before the norm if there is one
  Tensors means;      // float [C], of a norm
  Tensors rstds;      // float [C]
  Tensors variances;  // float [C]: the batch's, unbiased, or a copy of the running ones
};

// The gradients of the blocks' parameters, one tensor per block; undefined where none is needed.
struct ParameterGrads {
  explicit ParameterGrads(size_t blocks)
      : weights(blocks), biases(blocks), gammas(blocks), betas(blocks) {}

  Tensors weights, biases, gammas, betas;
};

// Replaces the undefined tensors, which an op cannot return, by empty ones.
Tensors returned(Tensors tensors, const at::TensorOptions& options);

// Checks that the lists which conv_stack_bwd takes have one entry per block.
void check_lists(const char* op, size_t blocks, const Tensors& raws, const Tensors& means,
                 const Tensors& rstds, at::IntArrayRef needs);

// z = x.
Affine identity(int64_t channels);
// z = scale * x.
Affine scaled(const at::Tensor& scale);

NormGrads norm_grads(const ChannelSums& sums, const at::Tensor& rstd);

// The gradient of a norm's input, where its statistics were the batch's.
FusedInput through_statistics(const GatedGrad& gated, const at::Tensor& y, const Affine& gate,
                              const at::Tensor& rstd);

}  // namespace genimg
