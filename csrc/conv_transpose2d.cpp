// genimg::conv_transpose2d_fwd and genimg::conv_transpose2d_bwd. What they compute:
// genimg/ops/conv_transpose2d.py.
#include <torch/library.h>

#include "convolution.h"

namespace genimg {
namespace {

at::Tensor conv_transpose2d_fwd_cpu(const at::Tensor& x, const at::Tensor& weight,
                                    const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                                    at::IntArrayRef padding, at::IntArrayRef output_padding) {
  return Convolution{"conv_transpose2d_fwd", true, stride, padding, output_padding}.forward(
      x, weight, bias);
}

std::tuple<at::Tensor, at::Tensor> conv_transpose2d_bwd_cpu(
    const at::Tensor& grad_y, const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef output_padding, bool needs_x, bool needs_weight) {
  return Convolution{"conv_transpose2d_bwd", true, stride, padding, output_padding}.backward(
      grad_y, x, weight, needs_x, needs_weight);
}

#ifdef GENIMG_WITH_CUDA

at::Tensor conv_transpose2d_fwd_cuda(const at::Tensor& x, const at::Tensor& weight,
                                     const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                                     at::IntArrayRef padding, at::IntArrayRef output_padding) {
  return Convolution{"conv_transpose2d_fwd", true, stride, padding, output_padding}.forward_cuda(
      x, weight, bias);
}

std::tuple<at::Tensor, at::Tensor> conv_transpose2d_bwd_cuda(
    const at::Tensor& grad_y, const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef output_padding, bool needs_x, bool needs_weight) {
  return Convolution{"conv_transpose2d_bwd", true, stride, padding, output_padding}.backward_cuda(
      grad_y, x, weight, needs_x, needs_weight);
}

#endif

}  // namespace

TORCH_LIBRARY_FRAGMENT(genimg, m) {
  m.def(
      "conv_transpose2d_fwd(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, "
      "int[2] output_padding) -> Tensor");
  m.def(
      "conv_transpose2d_bwd(Tensor grad_y, Tensor x, Tensor weight, int[2] stride, int[2] padding, "
      "int[2] output_padding, bool needs_x, bool needs_weight) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(genimg, CPU, m) {
  m.impl("conv_transpose2d_fwd", conv_transpose2d_fwd_cpu);
  m.impl("conv_transpose2d_bwd", conv_transpose2d_bwd_cpu);
}

#ifdef GENIMG_WITH_CUDA
TORCH_LIBRARY_IMPL(genimg, CUDA, m) {
  m.impl("conv_transpose2d_fwd", conv_transpose2d_fwd_cuda);
  m.impl("conv_transpose2d_bwd", conv_transpose2d_bwd_cuda);
}
#endif

}  // namespace genimg
