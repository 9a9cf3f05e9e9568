// Forward and backward of conv2d and conv_transpose2d: by the contractions, or by PyTorch where the
// contractions refuse the values (see ConvCall).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "../kernels/cpu/conv/geometry.h"

namespace genimg {

struct Convolution {
  const char* op;
  bool transposed;
  at::IntArrayRef stride, padding, output_padding;

  // Checks that shapes, devices and dtypes match and are supported. `bias` may be null.
  void check(const at::Tensor& x, const at::Tensor& weight, const at::Tensor* bias) const;
  int64_t out_size(const at::Tensor& x, const at::Tensor& weight, int64_t dim) const;
  cpu::ConvGeometry geometry(const at::Tensor& x, const at::Tensor& y,
                             const at::Tensor& weight) const;

  // In NHWC memory.
  at::Tensor empty_output(const at::Tensor& x, const at::Tensor& weight) const;

  // Computed by PyTorch.
  at::Tensor unfused(const at::Tensor& x, const at::Tensor& weight,
                     const std::optional<at::Tensor>& bias) const;
  std::tuple<at::Tensor, at::Tensor> unfused_backward(const at::Tensor& grad_y, const at::Tensor& x,
                                                      const at::Tensor& weight, bool needs_x,
                                                      bool needs_weight) const;

  at::Tensor forward(const at::Tensor& x, const at::Tensor& weight,
                     const std::optional<at::Tensor>& bias) const;
  // Gradients of x and weight; empty tensors for those that are not needed.
  std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad_y, const at::Tensor& x,
                                              const at::Tensor& weight, bool needs_x,
                                              bool needs_weight) const;

#ifdef GENIMG_WITH_CUDA
  at::Tensor forward_cuda(const at::Tensor& x, const at::Tensor& weight,
                          const std::optional<at::Tensor>& bias) const;
  std::tuple<at::Tensor, at::Tensor> backward_cuda(const at::Tensor& grad_y, const at::Tensor& x,
                                                   const at::Tensor& weight, bool needs_x,
                                                   bool needs_weight) const;
#endif
};

// The memory format that PyTorch gives a convolution's output.
at::MemoryFormat output_format(at::MemoryFormat input, const at::Tensor& weight);

// A parameter as floats with room for whole blocks of channels; undefined without one.
at::Tensor padded_floats(const std::optional<at::Tensor>& parameter);

}  // namespace genimg
