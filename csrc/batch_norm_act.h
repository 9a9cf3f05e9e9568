// Checks the arguments of batch_norm_act and selects the memory formats of its results, on the CPU
// and on CUDA.
#pragma once

#include <optional>

#include "channel_layout.h"
#include "checks.h"
#include "memory_format.h"

namespace genimg::norm {

// A parameter as floats; null if it is absent.
struct Floats {
  explicit Floats(const std::optional<at::Tensor>& parameter)
      : tensor(parameter ? parameter->to(at::kFloat).contiguous() : at::Tensor()),
        values(parameter ? tensor.const_data_ptr<float>() : nullptr) {}

  float at(int64_t c, float otherwise) const { return values ? values[c] : otherwise; }

  const at::Tensor tensor;
  const float* values;
};

inline void check_channels(const char* op, const char* name,
                           const std::optional<at::Tensor>& parameter, const at::Tensor& x) {
  if (!parameter) return;
  TORCH_CHECK(parameter->dim() == 1 && parameter->size(0) == x.size(1), op, ": expected ", name,
              " of shape [", x.size(1), "], but got ", parameter->sizes());
  check_same_device(op, "x", x, name, *parameter);
}

inline void check_input(const char* op, const at::Tensor& x) {
  TORCH_CHECK(x.dim() >= 2, op, ": expected x of shape [N, C, ...], but got ", x.sizes());
}

using Optional = std::optional<at::Tensor>;

inline void check_forward(const char* op, const at::Tensor& x, const Optional& weight,
                          const Optional& bias, const Optional& running_mean,
                          const Optional& running_var, bool training) {
  check_input(op, x);
  check_channels(op, "weight", weight, x);
  check_channels(op, "bias", bias, x);
  check_channels(op, "running_mean", running_mean, x);
  check_channels(op, "running_var", running_var, x);
  TORCH_CHECK(training || (running_mean && running_var), op,
              ": expected running statistics, since training=False");
  TORCH_CHECK(!training || x.numel() > x.size(1), op,
              ": expected more than 1 value per channel when training, got input size ", x.sizes());
}

inline void check_backward(const char* op, const at::Tensor& grad_y, const at::Tensor& x,
                           const Optional& weight, const Optional& bias, const at::Tensor& mean,
                           const at::Tensor& rstd) {
  check_input(op, x);
  check_like(op, "x", x, "grad_y", grad_y);
  check_channels(op, "weight", weight, x);
  check_channels(op, "bias", bias, x);
  check_channels(op, "mean", mean, x);
  check_channels(op, "rstd", rstd, x);
}

// Where a size of 1 lets both formats fit, torch's norm returns a contiguous tensor for a
// contiguous input, and so does an activation behind it.
inline at::MemoryFormat output_format(const ChannelView& laid, const at::Tensor& x,
                                      double negative_slope) {
  const bool activated = negative_slope != 1 && fits_both_formats(x.sizes());
  return x.is_contiguous() || activated ? at::MemoryFormat::Contiguous : laid.format;
}

inline at::MemoryFormat grad_format(const ChannelView& laid, const at::Tensor& x,
                                    const at::Tensor& grad_y, double negative_slope) {
  const bool plain = negative_slope == 1 && x.is_contiguous() &&
                     grad_y.suggest_memory_format() != at::MemoryFormat::Contiguous;
  return plain ? at::MemoryFormat::Contiguous : laid.format;
}

}  // namespace genimg::norm
