#include "conv_block.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>

#include "cpu/contraction.h"
#include "cpu/huge_pages.h"
#include "memory_format.h"

namespace genimg {

using cpu::ConvDirection;
using cpu::Epilogue;

namespace {

// How many of an op's arguments a block has.
constexpr size_t kParameters = 6, kOptions = 9, kNumbers = 2;

template <typename A, typename B>
constexpr bool is_same(A a, B b) {
  return static_cast<int>(a) == static_cast<int>(b);
}
static_assert(is_same(Activation::none, Epilogue::identity) &&
                  is_same(Activation::leaky_relu, Epilogue::leaky) &&
                  is_same(Activation::tanh, Epilogue::tanh) &&
                  is_same(Activation::sigmoid, Epilogue::sigmoid),
              "ConvBlock::forward casts one to the other");

// Hands out the values of a list in order.
template <typename T>
class Reader {
 public:
  explicit Reader(at::ArrayRef<T> values) : next_(values.data()) {}

  T next() { return *next_++; }
  std::array<T, 2> pair() {
    const T first = next();
    return {first, next()};
  }
  // A member of an enumeration, whose last one is `last`.
  template <typename Enum>
  Enum member(Enum last, const char* op, size_t block, const char* name) {
    const T code = next();
    TORCH_CHECK(code >= 0 && code <= static_cast<T>(last), op, ": block ", block, ": ", name,
                " is ", code, "; expected 0 to ", static_cast<T>(last));
    return static_cast<Enum>(code);
  }

 private:
  const T* next_;
};

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_act_fwd(
    const at::Tensor& x, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& mean,
    const std::optional<at::Tensor>& var, bool training, double eps, double negative_slope) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("genimg::batch_norm_act_fwd", "")
                             .typed<decltype(batch_norm_act_fwd)>();
  return op.call(x, weight, bias, mean, var, training, eps, negative_slope);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_act_bwd(
    const at::Tensor& grad_y, const at::Tensor& x, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, const at::Tensor& mean, const at::Tensor& rstd,
    bool training, double negative_slope, bool needs_grad_x) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("genimg::batch_norm_act_bwd", "")
                             .typed<decltype(batch_norm_act_bwd)>();
  return op.call(grad_y, x, weight, bias, mean, rstd, training, negative_slope, needs_grad_x);
}

at::Tensor padded_zeros(int64_t channels) {
  return padded_floats(at::zeros({channels}, at::TensorOptions().dtype(at::kFloat)));
}

}  // namespace

std::vector<ConvBlock> read_blocks(const char* op,
                                   const c10::List<std::optional<at::Tensor>>& parameters,
                                   at::IntArrayRef options, at::ArrayRef<double> numbers) {
  const size_t count = numbers.size() / kNumbers;
  TORCH_CHECK(count > 0 && numbers.size() == count * kNumbers &&
                  parameters.size() == count * kParameters && options.size() == count * kOptions,
              op, ": expected ", kParameters, " parameters, ", kOptions, " options and ", kNumbers,
              " numbers a block, but got ", parameters.size(), ", ", options.size(), " and ",
              numbers.size());
  std::vector<ConvBlock> blocks(count);
  Reader<int64_t> integers(options);
  Reader<double> floats(numbers);
  size_t parameter = 0;
  for (size_t b = 0; b < count; ++b) {
    ConvBlock& block = blocks[b];
    block.op = op;
    const std::optional<at::Tensor> weight = parameters.get(parameter++);
    TORCH_CHECK(weight.has_value(), op, ": block ", b, " has no weight");
    block.weight = *weight;
    for (auto* tensor :
         {&block.bias, &block.gamma, &block.beta, &block.running_mean, &block.running_var}) {
      *tensor = parameters.get(parameter++);
    }
    block.direction = integers.member(Direction::up, op, b, "direction");
    block.stride = integers.pair();
    block.padding = integers.pair();
    block.output_padding = integers.pair();
    block.norm = integers.member(NormMode::running, op, b, "norm");
    block.activation = integers.member(Activation::sigmoid, op, b, "activation");
    block.eps = floats.next();
    block.negative_slope = floats.next();
    TORCH_CHECK(b + 1 == count || !block.is_curved(), op, ": block ", b,
                ": only the last one may end in tanh or sigmoid");
    const int64_t channels = block.weight.dim() == 4 ? block.weight.size(block.transposed()) : 0;
    for (const auto* given : {&block.gamma, &block.beta, &block.running_mean, &block.running_var}) {
      TORCH_CHECK(!*given || ((*given)->dim() == 1 && (*given)->size(0) == channels), op,
                  ": block ", b, ": expected a parameter of shape [", channels, "]");
    }
  }
  return blocks;
}

Tensors returned(Tensors tensors, const at::TensorOptions& options) {
  for (at::Tensor& tensor : tensors) {
    if (!tensor.defined()) tensor = at::empty({0}, options);
  }
  return tensors;
}

void check_lists(const char* op, size_t blocks, const Tensors& raws, const Tensors& means,
                 const Tensors& rstds, at::IntArrayRef needs) {
  TORCH_CHECK(raws.size() == blocks && means.size() == blocks && rstds.size() == blocks &&
                  needs.size() == blocks,
              op, ": expected raws, means, rstds and needs of ", blocks, " blocks, but got ",
              raws.size(), ", ", means.size(), ", ", rstds.size(), " and ", needs.size());
}

Convolution ConvBlock::convolution() const {
  return {op, transposed(), stride, padding, output_padding};
}

void ConvBlock::set_formats(at::MemoryFormat input) {
  input_format = input;
  format = output_format(input, weight);
}

at::MemoryFormat ConvBlock::passed_on(at::IntArrayRef sizes) const {
  // Where a size of 1 lets both formats fit, norms and activations take the contiguous one; the
  // strides of an image of one value are the same in both.
  const bool elementwise = has_norm() || activation != Activation::none;
  const bool one_value = sizes[1] * sizes[2] * sizes[3] == 1;
  return fits_both_formats(sizes) && (elementwise || one_value) ? at::MemoryFormat::Contiguous
                                                                : format;
}

Affine ConvBlock::affine(const at::Tensor& mean, const at::Tensor& rstd) const {
  at::Tensor scale = padded_floats(rstd);
  if (gamma) {
    const at::Tensor factors = padded_floats(gamma);
    for (int64_t c = 0; c < scale.numel(); ++c) {
      scale.mutable_data_ptr<float>()[c] *= factors.const_data_ptr<float>()[c];
    }
  }
  return {padded_floats(mean), scale, beta ? padded_floats(beta) : padded_zeros(mean.size(0))};
}

at::Tensor ConvBlock::activate(const at::Tensor& z) const {
  if (activation == Activation::tanh) return z.tanh();
  if (activation == Activation::sigmoid) return z.sigmoid();
  if (activation == Activation::leaky_relu) return genimg::leaky(z, z, negative_slope);
  return z;
}

BlockOutput ConvBlock::forward(const FusedInput& image, bool training) const {
  const Convolution conv = convolution();
  const ConvDirection contraction = transposed() ? ConvDirection::dgrad : ConvDirection::fprop;
  at::Tensor y = conv.empty_output(image.x, weight);
  const cpu::ConvGeometry geometry = conv.geometry(image.x, y, weight);
  const at::Tensor floats = padded_floats(bias);
  Epilogue epilogue = {};
  epilogue.out = y.mutable_data_ptr();
  if (bias) epilogue.bias = floats.const_data_ptr<float>();
  if (!has_norm()) {
    epilogue.activation = static_cast<Epilogue::Activation>(activation);
    epilogue.negative_slope = static_cast<float>(negative_slope);
  }
  const bool measures = takes_statistics(training);
  Moments moments(measures ? moment_pieces(geometry, contraction) : 0, y.size(1));
  if (measures) moments.attach(&epilogue);
  const bool fused = contract(geometry, contraction, weight, image.prologue(), epilogue);
  if (!fused) {
    y = conv.unfused(in_format(image.dense(), input_format), weight, bias);
    y = result_in_format(has_norm() ? y : activate(y), at::MemoryFormat::ChannelsLast);
  }
  BlockOutput written = {y, {}};
  if (!has_norm()) return written;
  if (measures) {
    written.statistics = statistics(moments, fused ? nullptr : &y);
  } else {
    TORCH_CHECK(running_mean && running_var, op, ": expected running statistics outside training");
    // Copies: what is kept for a backward must not change with the buffers.
    const at::Tensor var = running_var->to(at::kFloat, false, true).contiguous();
    at::Tensor rstd = at::empty_like(var);
    for (int64_t c = 0; c < var.numel(); ++c) {
      const double about = var.const_data_ptr<float>()[c] + eps;
      rstd.mutable_data_ptr<float>()[c] = static_cast<float>(1 / std::sqrt(about));
    }
    written.statistics = {running_mean->to(at::kFloat, false, true), rstd, var, {}};
  }
  return written;
}

Statistics ConvBlock::statistics(const Moments& moments, const at::Tensor* refused) const {
  const ChannelSums sums = refused ? mean_and_squares(*refused) : mean_and_squares(moments);
  double count = refused ? static_cast<double>(refused->numel() / refused->size(1)) : 0;
  for (const double n : moments.counts) count += refused ? 0 : n;
  const at::Tensor var = sums.second / count;
  return {sums.first.to(at::kFloat), (var + eps).rsqrt().to(at::kFloat), var.to(at::kFloat),
          (sums.second / (count - 1)).to(at::kFloat)};
}

at::Tensor ConvBlock::norm_and_activate(const at::Tensor& raw, const Statistics& statistics) const {
  const at::Tensor y = std::get<0>(batch_norm_act_fwd(raw, gamma, beta, statistics.mean,
                                                      statistics.var, false, eps, gate_slope()));
  return is_curved() ? activate(y) : y;
}

NormGrads ConvBlock::norm_backward(const at::Tensor& grad_y, const at::Tensor& y,
                                   const at::Tensor& raw, const at::Tensor& mean,
                                   const at::Tensor& rstd, bool training) const {
  const at::Tensor grad = is_curved() ? activation_backward(grad_y, y) : grad_y;
  const auto [x, grad_gamma, grad_beta] = batch_norm_act_bwd(
      grad, raw, gamma, beta, mean, rstd, takes_statistics(training), gate_slope(), true);
  return {x, grad_gamma, grad_beta};
}

at::Tensor ConvBlock::activation_backward(const at::Tensor& grad_y, const at::Tensor& y) const {
  if (activation == Activation::tanh) return at::tanh_backward(grad_y, y);
  if (activation == Activation::sigmoid) return at::sigmoid_backward(grad_y, y);
  return grad_y;
}

at::Tensor ConvBlock::bias_grad(const at::Tensor& grad_beta, const at::Tensor& scale,
                                bool training) const {
  if (!bias) return at::Tensor();
  if (takes_statistics(training)) return at::zeros_like(grad_beta);
  return grad_beta * scale.narrow(0, 0, grad_beta.size(0));
}

std::tuple<at::Tensor, at::Tensor> ConvBlock::unfused_backward(const FusedInput& grad,
                                                               const at::Tensor& image,
                                                               bool needs_x,
                                                               bool needs_weight) const {
  return convolution().unfused_backward(in_format(grad.dense(), format),
                                        in_format(image, input_format), weight, needs_x,
                                        needs_weight);
}

at::Tensor ConvBlock::weight_backward(const FusedInput& image, const FusedInput& grad) const {
  at::Tensor grad_weight = at::empty(weight.sizes(), weight.options(), format);
  const cpu::ConvGeometry geometry = convolution().geometry(image.x, grad.x, weight);
  const cpu::Prologue ours = image.prologue(), theirs = grad.prologue();
  const bool fused = transposed() ? contract_weight(geometry, ours, theirs, grad_weight)
                                  : contract_weight(geometry, theirs, ours, grad_weight);
  if (!fused) grad_weight = std::get<1>(unfused_backward(grad, image.dense(), false, true));
  return grad_weight;
}

at::Tensor ConvBlock::input_backward(const FusedInput& grad, const at::Tensor& like) const {
  at::Tensor grad_x = empty_channels_last(like.sizes(), like.options());
  const cpu::ConvGeometry geometry = convolution().geometry(like, grad.x, weight);
  Epilogue epilogue = {};
  epilogue.out = grad_x.mutable_data_ptr();
  const bool fused = contract(geometry, transposed() ? ConvDirection::fprop : ConvDirection::dgrad,
                              weight, grad.prologue(), epilogue);
  return fused ? grad_x : std::get<0>(unfused_backward(grad, like, true, false));
}

GatedGrad ConvBlock::gated_backward(const FusedInput& grad, const at::Tensor& y, const Affine& gate,
                                    double slope) const {
  const ConvDirection contraction = transposed() ? ConvDirection::fprop : ConvDirection::dgrad;
  const cpu::ConvGeometry geometry = convolution().geometry(y, grad.x, weight);
  at::Tensor dz = empty_channels_last(y.sizes(), y.options());
  Epilogue epilogue = {};
  epilogue.kind = Epilogue::gate;
  epilogue.out = dz.mutable_data_ptr();
  epilogue.y = y.const_data_ptr();
  epilogue.mean = gate.mean.const_data_ptr<float>();
  epilogue.scale = gate.scale.const_data_ptr<float>();
  epilogue.shift = gate.shift.const_data_ptr<float>();
  epilogue.negative_slope = static_cast<float>(slope);
  Moments moments(moment_pieces(geometry, contraction), y.size(1));
  moments.attach(&epilogue);
  if (contract(geometry, contraction, weight, grad.prologue(), epilogue)) {
    return {dz, gate_sums(moments)};
  }
  const auto of_channels = [&](const at::Tensor& padded) { return per_channel(padded, y.size(1)); };
  const at::Tensor centred = y.to(at::kFloat) - of_channels(gate.mean);
  const at::Tensor z = centred * of_channels(gate.scale) + of_channels(gate.shift);
  const at::Tensor value = std::get<0>(unfused_backward(grad, y, true, false));
  dz = to_channels_last(genimg::leaky(z, value, slope));
  const at::Tensor wide = dz.to(at::kDouble);
  return {dz, {wide.sum({0, 2, 3}), (wide * centred).sum({0, 2, 3})}};
}

Affine identity(int64_t channels) {
  return {padded_zeros(channels), at::ones_like(padded_zeros(channels)), padded_zeros(channels)};
}

Affine scaled(const at::Tensor& scale) {
  return {at::zeros_like(scale), scale, at::zeros_like(scale)};
}

NormGrads norm_grads(const ChannelSums& sums, const at::Tensor& rstd) {
  return {at::Tensor(), (sums.second * rstd).to(at::kFloat), sums.first.to(at::kFloat)};
}

FusedInput through_statistics(const GatedGrad& gated, const at::Tensor& y, const Affine& gate,
                              const at::Tensor& rstd) {
  const int64_t channels = y.size(1);
  const double count = static_cast<double>(y.numel() / channels);
  const at::Tensor scale = gate.scale.narrow(0, 0, channels).to(at::kDouble) / -count;
  const at::Tensor shift = scale * gated.sums.first;
  const at::Tensor slope = scale * rstd.to(at::kDouble).square() * gated.sums.second;
  return FusedInput::two_tensor(gated.dz, y, {gate.mean, gate.scale, padded_floats(shift)},
                                padded_floats(slope));
}

}  // namespace genimg
