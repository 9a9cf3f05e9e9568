// genimg::conv_stack_fwd and genimg::conv_stack_bwd on the CPU. Formulas: genimg/ops/conv_stack.py.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <vector>

#include "conv_block.h"
#include "dispatch.h"
#include "memory_format.h"

namespace genimg {
namespace {

std::tuple<at::Tensor, Tensors, Tensors, Tensors, Tensors> conv_stack_fwd_cpu(
    const at::Tensor& x, const c10::List<std::optional<at::Tensor>>& parameters,
    at::IntArrayRef options, at::ArrayRef<double> numbers, bool training, bool keep) {
  check_cpu_dtype("conv_stack_fwd", x.scalar_type());
  std::vector<ConvBlock> blocks = read_blocks("conv_stack_fwd", parameters, options, numbers);
  Kept kept(blocks.size());
  auto format = x.suggest_memory_format();
  FusedInput image = FusedInput::plain(to_channels_last(x));
  at::Tensor y;
  for (size_t b = 0; b < blocks.size(); ++b) {
    ConvBlock& block = blocks[b];
    const bool last = b + 1 == blocks.size();
    block.convolution().check(image.x, block.weight, block.bias ? &*block.bias : nullptr);
    block.set_formats(format);
    const BlockOutput written = block.forward(image, training);
    y = written.image;
    format = block.passed_on(y.sizes());
    if (block.has_norm()) {
      const Statistics& statistics = written.statistics;
      kept.means[b] = statistics.mean;
      kept.rstds[b] = statistics.rstd;
      kept.variances[b] =
          block.takes_statistics(training) ? statistics.unbiased_var : statistics.var;
      if (keep) kept.raws[b] = y;
      if (last) y = block.norm_and_activate(y, statistics);
      image = FusedInput::affine_leaky(y, block.affine(statistics.mean, statistics.rstd),
                                       block.gate_slope());
    } else {
      if (keep && !last) kept.raws[b] = y;
      image = FusedInput::plain(y);
    }
  }
  return {result_in_format(y, format), returned(kept.raws, x.options()),
          returned(kept.means, x.options()), returned(kept.rstds, x.options()),
          returned(kept.variances, x.options())};
}

// The pass of a gradient from the last block to the lowest one that needs any.
struct Backward {
  Backward(const std::vector<ConvBlock>& blocks, const at::Tensor& x, const Tensors& raws,
           const Tensors& means, const Tensors& rstds)
      : blocks(blocks),
        x(to_channels_last(x)),
        raws(raws),
        means(means),
        rstds(rstds),
        grads(blocks.size()) {}

  Affine affine(size_t b) const { return blocks[b].affine(means[b], rstds[b]); }

  FusedInput input(size_t b) const {
    if (b == 0) return FusedInput::plain(x);
    const ConvBlock& before = blocks[b - 1];
    if (!before.has_norm()) return FusedInput::plain(raws[b - 1]);
    return FusedInput::affine_leaky(raws[b - 1], affine(b - 1), before.gate_slope());
  }

  // From the stack's output to the last block's convolution.
  void begin(const at::Tensor& grad_y, const std::optional<at::Tensor>& y, bool training) {
    const size_t b = blocks.size() - 1;
    const ConvBlock& block = blocks[b];
    const at::Tensor dy = to_channels_last(grad_y);
    const at::Tensor outputs = y ? to_channels_last(*y) : dy;
    if (block.has_norm()) {
      const NormGrads found =
          block.norm_backward(dy, outputs, raws[b], means[b], rstds[b], training);
      grads.gammas[b] = found.gamma;
      grads.betas[b] = found.beta;
      grads.biases[b] = block.bias_grad(found.beta, affine(b).scale, training);
      incoming = FusedInput::plain(found.x);
    } else {
      const at::Tensor dz = block.activation_backward(dy, outputs);
      if (block.bias) grads.biases[b] = dz.sum({0, 2, 3}, false, at::kDouble).to(at::kFloat);
      incoming = FusedInput::plain(dz);
    }
  }

  // From block b's convolution to that of the block before it.
  void descend(size_t b, bool training) {
    const ConvBlock& before = blocks[b - 1];
    const bool norm = before.has_norm();
    const int64_t channels = raws[b - 1].size(1);
    const Affine gate = norm ? affine(b - 1) : identity(channels);
    const GatedGrad gated =
        blocks[b].gated_backward(incoming, raws[b - 1], gate, before.gate_slope());
    if (!norm) {
      if (before.bias) grads.biases[b - 1] = gated.sums.first.to(at::kFloat);
      incoming = FusedInput::plain(gated.dz);
      return;
    }
    const NormGrads found = norm_grads(gated.sums, rstds[b - 1]);
    grads.gammas[b - 1] = found.gamma;
    grads.betas[b - 1] = found.beta;
    grads.biases[b - 1] = before.bias_grad(found.beta, gate.scale, training);
    if (before.takes_statistics(training)) {
      incoming = through_statistics(gated, raws[b - 1], gate, rstds[b - 1]);
    } else {
      incoming = FusedInput::affine_leaky(gated.dz, scaled(gate.scale), 1.0);
    }
  }

  const std::vector<ConvBlock>& blocks;
  const at::Tensor x;
  const Tensors &raws, &means, &rstds;
  FusedInput incoming;  // the gradient of the output of the current block's convolution
  ParameterGrads grads;
};

// grad_x and the gradients of the parameters; empty tensors for those that are not needed.
std::tuple<at::Tensor, Tensors, Tensors, Tensors, Tensors> conv_stack_bwd_cpu(
    const at::Tensor& grad_y, const at::Tensor& x, const std::optional<at::Tensor>& y,
    const c10::List<std::optional<at::Tensor>>& parameters, const Tensors& raws,
    const Tensors& means, const Tensors& rstds, at::IntArrayRef options,
    at::ArrayRef<double> numbers, bool training, bool needs_x, at::IntArrayRef needs) {
  std::vector<ConvBlock> blocks = read_blocks("conv_stack_bwd", parameters, options, numbers);
  check_lists("conv_stack_bwd", blocks.size(), raws, means, rstds, needs);
  TORCH_CHECK(
      blocks.back().has_norm() || blocks.back().activation != Activation::leaky_relu,
      "conv_stack_bwd: the last block ends in a LeakyReLU without a norm, whose gradient the "
      "caller computes by leaky_signs_bwd");
  Backward backward(blocks, x, raws, means, rstds);
  backward.begin(grad_y, y, training);
  size_t lowest = 0;
  while (!needs_x && lowest < blocks.size() && needs[lowest] == 0) ++lowest;
  at::Tensor grad_x = at::empty({0}, x.options());
  blocks[0].set_formats(x.suggest_memory_format());
  for (size_t b = 1; b < blocks.size(); ++b) {
    blocks[b].set_formats(blocks[b - 1].passed_on(raws[b - 1].sizes()));
  }
  for (size_t b = blocks.size(); b-- > lowest;) {
    if (needs[b] & kNeedsWeight) {
      backward.grads.weights[b] = blocks[b].weight_backward(backward.input(b), backward.incoming);
    }
    if (b > lowest) {
      backward.descend(b, training);
    } else if (needs_x) {
      grad_x = result_in_format(blocks[0].input_backward(backward.incoming, backward.x),
                                blocks[0].format);
    }
  }
  const ParameterGrads& grads = backward.grads;
  return {grad_x, returned(grads.weights, x.options()), returned(grads.biases, x.options()),
          returned(grads.gammas, x.options()), returned(grads.betas, x.options())};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(genimg, m) {
  // parameters, options and numbers: PackedBlocks of genimg/conv_blocks.py.
  m.def(
      "conv_stack_fwd(Tensor x, Tensor?[] parameters, int[] options, float[] numbers, "
      "bool training, bool keep) -> "
      "(Tensor y, Tensor[] raws, Tensor[] means, Tensor[] rstds, Tensor[] variances)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "conv_stack_bwd(Tensor grad_y, Tensor x, Tensor? y, Tensor?[] parameters, Tensor[] raws, "
      "Tensor[] means, Tensor[] rstds, int[] options, float[] numbers, bool training, "
      "bool needs_x, int[] needs) -> "
      "(Tensor grad_x, Tensor[] weights, Tensor[] biases, Tensor[] gammas, Tensor[] betas)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(genimg, CPU, m) {
  m.impl("conv_stack_fwd", conv_stack_fwd_cpu);
  m.impl("conv_stack_bwd", conv_stack_bwd_cpu);
}

}  // namespace genimg
