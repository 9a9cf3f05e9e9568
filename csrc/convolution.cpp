#include "convolution.h"

#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>

#include "checks.h"
#include "cpu/contraction.h"
#include "cpu/huge_pages.h"
#include "dispatch.h"
#include "memory_format.h"

namespace genimg {

using at::MemoryFormat;
using cpu::ConvDirection;
using cpu::ConvGeometry;
using cpu::kChannelBlock;

namespace {

constexpr std::array<int64_t, 2> kNoDilation = {1, 1};

cpu::Prologue reading(const at::Tensor& image) {
  cpu::Prologue prologue = {};
  prologue.x = image.const_data_ptr();
  return prologue;
}

cpu::Epilogue writing(at::Tensor& image) {
  cpu::Epilogue epilogue = {};
  epilogue.out = image.mutable_data_ptr();
  return epilogue;
}

}  // namespace

MemoryFormat output_format(MemoryFormat input, const at::Tensor& weight) {
  return input == MemoryFormat::ChannelsLast ? input : weight.suggest_memory_format();
}

at::Tensor padded_floats(const std::optional<at::Tensor>& parameter) {
  if (!parameter) return at::Tensor();
  const int64_t size = parameter->size(0);
  const int64_t padded = (size + kChannelBlock - 1) / kChannelBlock * kChannelBlock;
  at::Tensor floats = at::empty({padded}, parameter->options().dtype(at::kFloat));
  const at::Tensor given = parameter->to(at::kFloat).contiguous();
  const float* const from = given.const_data_ptr<float>();
  float* const to = floats.mutable_data_ptr<float>();
  std::copy(from, from + size, to);
  std::fill(to + size, to + padded, 0.0f);
  return floats;
}

void Convolution::check(const at::Tensor& x, const at::Tensor& weight,
                        const at::Tensor* bias) const {
  TORCH_CHECK(x.dim() == 4 && weight.dim() == 4, op,
              ": expected x and weight of 4 dimensions, got ", x.sizes(), " and ", weight.sizes());
  check_same_dtype(op, "x", x, "weight", weight);
  check_same_device(op, "x", x, "weight", weight);
  const int64_t channels = weight.size(transposed ? 0 : 1);
  TORCH_CHECK(x.size(1) == channels, op, ": expected x of ", channels, " channels, but got ",
              x.sizes());
  TORCH_CHECK(x.numel() > 0 && weight.numel() > 0, op, ": expected no empty tensor, but got ",
              x.sizes(), " and ", weight.sizes());
  for (int64_t d = 0; d < 2; ++d) {
    const int64_t kernel = weight.size(2 + d);
    TORCH_CHECK(kernel <= cpu::kMaxKernel && stride[d] >= 1 && stride[d] <= cpu::kMaxKernel &&
                    padding[d] >= 0 && output_padding[d] >= 0,
                op, ": kernel ", kernel, ", stride ", stride[d], ", padding ", padding[d],
                " and output padding ", output_padding[d], " are not supported");
    TORCH_CHECK(out_size(x, weight, 2 + d) > 0, op, ": the output would be empty: x is ", x.sizes(),
                ", weight ", weight.sizes());
  }
  if (!bias) return;
  check_same_device(op, "x", x, "bias", *bias);
  const int64_t outputs = weight.size(transposed ? 1 : 0);
  TORCH_CHECK(bias->dim() == 1 && bias->size(0) == outputs, op, ": expected a bias of shape [",
              outputs, "], but got ", bias->sizes());
}

int64_t Convolution::out_size(const at::Tensor& x, const at::Tensor& weight, int64_t dim) const {
  const int64_t d = dim - 2, size = x.size(dim), kernel = weight.size(dim);
  if (transposed) return (size - 1) * stride[d] - 2 * padding[d] + kernel + output_padding[d];
  const int64_t room = size + 2 * padding[d] - kernel;
  return room < 0 ? 0 : room / stride[d] + 1;
}

ConvGeometry Convolution::geometry(const at::Tensor& x, const at::Tensor& y,
                                   const at::Tensor& weight) const {
  return transposed ? conv_geometry(x, y, weight, stride, padding)
                    : conv_geometry(y, x, weight, stride, padding);
}

at::Tensor Convolution::empty_output(const at::Tensor& x, const at::Tensor& weight) const {
  return empty_channels_last(
      {x.size(0), weight.size(transposed ? 1 : 0), out_size(x, weight, 2), out_size(x, weight, 3)},
      x.options());
}

at::Tensor Convolution::unfused(const at::Tensor& x, const at::Tensor& weight,
                                const std::optional<at::Tensor>& bias) const {
  return at::convolution(x, weight, bias, stride, padding, kNoDilation, transposed, output_padding,
                         1);
}

std::tuple<at::Tensor, at::Tensor> Convolution::unfused_backward(const at::Tensor& grad_y,
                                                                 const at::Tensor& x,
                                                                 const at::Tensor& weight,
                                                                 bool needs_x,
                                                                 bool needs_weight) const {
  const auto grads =
      at::convolution_backward(grad_y, x, weight, std::nullopt, stride, padding, kNoDilation,
                               transposed, output_padding, 1, {needs_x, needs_weight, false});
  return {std::get<0>(grads), std::get<1>(grads)};
}

at::Tensor Convolution::forward(const at::Tensor& x, const at::Tensor& weight,
                                const std::optional<at::Tensor>& bias) const {
  check(x, weight, bias ? &*bias : nullptr);
  check_cpu_dtype(op, x.scalar_type());
  const at::Tensor pixels = to_channels_last(x);
  at::Tensor y = empty_output(x, weight);
  const at::Tensor floats = padded_floats(bias);
  cpu::Epilogue epilogue = writing(y);
  if (bias) epilogue.bias = floats.const_data_ptr<float>();
  if (!contract(geometry(x, y, weight), transposed ? ConvDirection::dgrad : ConvDirection::fprop,
                weight, reading(pixels), epilogue)) {
    y = unfused(x, weight, bias);
  }
  return result_in_format(y, output_format(x.suggest_memory_format(), weight));
}

std::tuple<at::Tensor, at::Tensor> Convolution::backward(const at::Tensor& grad_y,
                                                         const at::Tensor& x,
                                                         const at::Tensor& weight, bool needs_x,
                                                         bool needs_weight) const {
  check(x, weight, nullptr);
  check_cpu_dtype(op, x.scalar_type());
  check_same_dtype(op, "x", x, "grad_y", grad_y);
  const at::Tensor grads = to_channels_last(grad_y);
  const ConvGeometry g = geometry(x, grads, weight);
  const MemoryFormat format = output_format(x.suggest_memory_format(), weight);
  bool served = true;
  at::Tensor grad_x = at::empty({0}, x.options()), grad_weight = at::empty({0}, weight.options());
  if (needs_x) {
    grad_x = empty_channels_last(x.sizes(), x.options());
    served = contract(g, transposed ? ConvDirection::fprop : ConvDirection::dgrad, weight,
                      reading(grads), writing(grad_x));
    grad_x = result_in_format(grad_x, format);
  }
  if (served && needs_weight) {
    grad_weight = at::empty(weight.sizes(), weight.options(), format);
    const at::Tensor pixels = to_channels_last(x);
    const cpu::Prologue ours = reading(pixels), theirs = reading(grads);
    served = transposed ? contract_weight(g, ours, theirs, grad_weight)
                        : contract_weight(g, theirs, ours, grad_weight);
    grad_weight = grad_weight.contiguous(format);
  }
  if (!served) {
    const auto both =
        at::convolution_backward(grad_y, x, weight, std::nullopt, stride, padding, kNoDilation,
                                 transposed, output_padding, 1, {needs_x, needs_weight, false});
    if (needs_x) grad_x = std::get<0>(both);
    if (needs_weight) grad_weight = std::get<1>(both);
  }
  return {grad_x, grad_weight};
}

}  // namespace genimg
