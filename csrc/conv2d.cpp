// genimg::conv2d_fwd and genimg::conv2d_bwd. What they compute: genimg/ops/conv2d.py.
#include <torch/library.h>

#include <array>

#include "convolution.h"

namespace genimg {
namespace {

constexpr std::array<int64_t, 2> kNone = {0, 0};

at::Tensor conv2d_fwd_cpu(const at::Tensor& x, const at::Tensor& weight,
                          const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                          at::IntArrayRef padding) {
  return Convolution{"conv2d_fwd", false, stride, padding, kNone}.forward(x, weight, bias);
}

std::tuple<at::Tensor, at::Tensor> conv2d_bwd_cpu(const at::Tensor& grad_y, const at::Tensor& x,
                                                  const at::Tensor& weight, at::IntArrayRef stride,
                                                  at::IntArrayRef padding, bool needs_x,
                                                  bool needs_weight) {
  return Convolution{"conv2d_bwd", false, stride, padding, kNone}.backward(grad_y, x, weight,
                                                                           needs_x, needs_weight);
}

#ifdef GENIMG_WITH_CUDA

at::Tensor conv2d_fwd_cuda(const at::Tensor& x, const at::Tensor& weight,
                           const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                           at::IntArrayRef padding) {
  return Convolution{"conv2d_fwd", false, stride, padding, kNone}.forward_cuda(x, weight, bias);
}

std::tuple<at::Tensor, at::Tensor> conv2d_bwd_cuda(const at::Tensor& grad_y, const at::Tensor& x,
                                                   const at::Tensor& weight, at::IntArrayRef stride,
                                                   at::IntArrayRef padding, bool needs_x,
                                                   bool needs_weight) {
  return Convolution{"conv2d_bwd", false, stride, padding, kNone}.backward_cuda(
      grad_y, x, weight, needs_x, needs_weight);
}

#endif

}  // namespace

TORCH_LIBRARY_FRAGMENT(genimg, m) {
  m.def(
      "conv2d_fwd(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding) -> "
      "Tensor");
  m.def(
      "conv2d_bwd(Tensor grad_y, Tensor x, Tensor weight, int[2] stride, int[2] padding, "
      "bool needs_x, bool needs_weight) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(genimg, CPU, m) {
  m.impl("conv2d_fwd", conv2d_fwd_cpu);
  m.impl("conv2d_bwd", conv2d_bwd_cpu);
}

#ifdef GENIMG_WITH_CUDA
TORCH_LIBRARY_IMPL(genimg, CUDA, m) {
  m.impl("conv2d_fwd", conv2d_fwd_cuda);
  m.impl("conv2d_bwd", conv2d_bwd_cuda);
}
#endif

}  // namespace genimg
