// genimg::conv_stack_fwd and genimg::conv_stack_bwd. What they compute: genimg/ops/conv_stack.py.
#include <ATen/core/List.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <vector>

#include "conv_block.h"
#include "dispatch.h"
#include "memory_format.h"

namespace genimg {
namespace {

// What a forward hands out besides its output: all that a backward needs, and the statistics of the
// norms in training. Empty tensors where a block has none.
struct Kept {
  explicit Kept(size_t blocks) : raws(blocks), means(blocks), rstds(blocks), vars(blocks) {}

  std::vector<at::Tensor> in_order(const at::TensorOptions& options) const {
    std::vector<at::Tensor> all;
    for (const auto* list : {&raws, &means, &rstds, &vars}) {
      for (const at::Tensor& tensor : *list) {
        all.push_back(tensor.defined() ? tensor : at::empty({0}, options));
      }
    }
    return all;
  }

  std::vector<at::Tensor> raws, means, rstds, vars;
};

std::tuple<at::Tensor, std::vector<at::Tensor>> conv_stack_fwd_cpu(
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
      if (block.takes_statistics(training)) kept.vars[b] = statistics.unbiased_var;
      if (keep) kept.raws[b] = y;
      if (last) y = block.norm_and_activate(y, statistics);
      image = FusedInput::affine_leaky(y, block.affine(statistics.mean, statistics.rstd),
                                       block.gate_slope());
    } else {
      if (keep && !last) kept.raws[b] = y;
      image = FusedInput::plain(y);
    }
  }
  return {result_in_format(y, format), kept.in_order(x.options())};
}

// What a backward makes, by block; and the gradient that wanders down.
struct Backward {
  Backward(const std::vector<ConvBlock>& blocks, const at::Tensor& x,
           const std::vector<at::Tensor>& kept)
      : blocks(blocks),
        x(to_channels_last(x)),
        kept(kept),
        weights(blocks.size()),
        biases(blocks.size()),
        gammas(blocks.size()),
        betas(blocks.size()) {}

  const at::Tensor& raw(size_t b) const { return kept[b]; }
  const at::Tensor& mean(size_t b) const { return kept[blocks.size() + b]; }
  const at::Tensor& rstd(size_t b) const { return kept[2 * blocks.size() + b]; }

  Affine affine(size_t b) const { return blocks[b].affine(mean(b), rstd(b)); }

  FusedInput input(size_t b) const {
    if (b == 0) return FusedInput::plain(x);
    const ConvBlock& before = blocks[b - 1];
    if (!before.has_norm()) return FusedInput::plain(raw(b - 1));
    return FusedInput::affine_leaky(raw(b - 1), affine(b - 1), before.gate_slope());
  }

  // The last block's gradient: what reaches its convolution.
  void begin(const at::Tensor& grad_y, const std::optional<at::Tensor>& y, bool training) {
    const size_t b = blocks.size() - 1;
    const ConvBlock& block = blocks[b];
    const at::Tensor grads = to_channels_last(grad_y);
    const at::Tensor outputs = y ? to_channels_last(*y) : grads;
    if (block.has_norm()) {
      const NormGrads found =
          block.norm_backward(grads, outputs, raw(b), mean(b), rstd(b), training);
      gammas[b] = found.gamma;
      betas[b] = found.beta;
      biases[b] = block.bias_grad(found.beta, affine(b).scale, training);
      grad = FusedInput::plain(found.x);
    } else {
      const at::Tensor dz = block.activation_backward(grads, outputs);
      if (block.bias) biases[b] = dz.sum({0, 2, 3}, false, at::kDouble).to(at::kFloat);
      grad = FusedInput::plain(dz);
    }
  }

  // From block b's convolution to that of the block before it.
  void descend(size_t b, bool training) {
    const ConvBlock& before = blocks[b - 1];
    const bool norm = before.has_norm();
    const int64_t channels = raw(b - 1).size(1);
    const Affine gate = norm ? affine(b - 1) : identity(channels);
    const GatedGrad gated = blocks[b].gated_backward(grad, raw(b - 1), gate, before.gate_slope());
    if (!norm) {
      biases[b - 1] = gated.sums.first.to(at::kFloat);
      grad = FusedInput::plain(gated.dz);
      return;
    }
    const NormGrads found = norm_grads(gated.sums, rstd(b - 1));
    gammas[b - 1] = found.gamma;
    betas[b - 1] = found.beta;
    biases[b - 1] = before.bias_grad(found.beta, gate.scale, training);
    if (before.takes_statistics(training)) {
      grad = through_statistics(gated, raw(b - 1), gate, rstd(b - 1));
    } else {
      grad = FusedInput::affine_leaky(gated.dz, scaled(gate.scale), 1.0);
    }
  }

  const std::vector<ConvBlock>& blocks;
  const at::Tensor x;
  const std::vector<at::Tensor>& kept;
  FusedInput grad;
  std::vector<at::Tensor> weights, biases, gammas, betas;
};

// In `needs`, a block's weight and its other parameters.
constexpr int64_t kNeedsWeight = 1;

// grad_x, and the gradients of `parameters` in their order; empty tensors where not asked for.
std::tuple<at::Tensor, std::vector<at::Tensor>> conv_stack_bwd_cpu(
    const at::Tensor& grad_y, const at::Tensor& x, const std::optional<at::Tensor>& y,
    const c10::List<std::optional<at::Tensor>>& parameters, const std::vector<at::Tensor>& kept,
    at::IntArrayRef options, at::ArrayRef<double> numbers, bool training, bool needs_x,
    at::IntArrayRef needs) {
  std::vector<ConvBlock> blocks = read_blocks("conv_stack_bwd", parameters, options, numbers);
  TORCH_CHECK(kept.size() == 4 * blocks.size() && needs.size() == blocks.size(),
              "conv_stack_bwd: expected what conv_stack_fwd keeps, and what is needed, of ",
              blocks.size(), " blocks");
  TORCH_CHECK(
      blocks.back().has_norm() || blocks.back().activation != ConvBlock::leaky,
      "conv_stack_bwd: a LeakyReLU at the end, without a norm, is the caller's to go through: "
      "see leaky_signs_bwd");
  Backward backward(blocks, x, kept);
  backward.begin(grad_y, y, training);
  size_t lowest = 0;
  while (!needs_x && lowest < blocks.size() && needs[lowest] == 0) ++lowest;
  at::Tensor grad_x = at::empty({0}, x.options());
  blocks[0].set_formats(x.suggest_memory_format());
  for (size_t b = 1; b < blocks.size(); ++b) {
    blocks[b].set_formats(blocks[b - 1].passed_on(kept[b - 1].sizes()));
  }
  for (size_t b = blocks.size(); b-- > lowest;) {
    if (needs[b] & kNeedsWeight) {
      backward.weights[b] = blocks[b].weight_backward(backward.input(b), backward.grad);
    }
    if (b > lowest) {
      backward.descend(b, training);
    } else if (needs_x) {
      grad_x =
          result_in_format(blocks[0].input_backward(backward.grad, backward.x), blocks[0].format);
    }
  }
  std::vector<at::Tensor> grads;
  for (size_t b = 0; b < blocks.size(); ++b) {
    for (const at::Tensor* found :
         {&backward.weights[b], &backward.biases[b], &backward.gammas[b], &backward.betas[b]}) {
      grads.push_back(found->defined() ? *found : at::empty({0}, x.options()));
    }
  }
  return {grad_x, grads};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(genimg, m) {
  m.def(
      "conv_stack_fwd(Tensor x, Tensor?[] parameters, int[] options, float[] numbers, "
      "bool training, bool keep) -> (Tensor, Tensor[])",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "conv_stack_bwd(Tensor grad_y, Tensor x, Tensor? y, Tensor?[] parameters, Tensor[] kept, "
      "int[] options, float[] numbers, bool training, bool needs_x, int[] needs) -> "
      "(Tensor, Tensor[])",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(genimg, CPU, m) {
  m.impl("conv_stack_fwd", conv_stack_fwd_cpu);
  m.impl("conv_stack_bwd", conv_stack_bwd_cpu);
}

}  // namespace genimg
